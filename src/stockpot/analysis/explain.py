"""Why a soup failed: what of the usual reasons holds for these ingredients, and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.evaluate.metrics import CrossEntropy
from stockpot.recipes.base import Kitchen
from stockpot.tensors.rounding import widen

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


Kind = Literal["barrier", "no-shared-initialisation", "heads-differ", "outlier", "nothing-found"]

UNRELATED = 0.3
"""Centred correlation below which tensors do not come from one start.

Runs of one initialisation measured 0.93 to 0.99, of different seeds at most 0.08."""
OUTLIER = 3.0
"""An ingredient this many times farther from the base than the median one stands out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason, in a sentence with its numbers, and what to try."""

    kind: Kind
    text: str
    remedy: str

    def to_json(self) -> dict[str, JSON]:
        """The three fields."""
        return {"kind": self.kind, "text": self.text, "remedy": self.remedy}


def explain(kitchen: Kitchen, best_first: Sequence[int], *, n_points: int = 5) -> list[Finding]:
    """Look for the usual reasons why averages of `kitchen.ingredients` are bad.

    Args:
        kitchen: ingredients and evaluator.
        best_first: positions of the ingredients by score; the barrier is measured between the
            first two.
        n_points: points of that line, ends included; without outputs it is not measured.
    """
    findings: list[Finding] = []
    given = kitchen.ingredients
    if kitchen.evaluator is None or not kitchen.evaluator.has_outputs:
        n_points = 0
    if len(best_first) >= 2:
        a, b = best_first[:2]
        findings += _unrelated(given[a], given[b], sorted(given.averaged))
        if n_points > 1:
            findings += _barrier(kitchen, a, b, n_points)
    findings += _outliers(kitchen)
    if not findings:
        findings.append(
            Finding(
                "nothing-found",
                "none of the usual reasons was found (no shared start, other heads, a barrier "
                "between the best two, one far from the others): averaging does not help here",
                "use the best single model, or make more varied ingredients (stockpot sweep)",
            )
        )
    return findings


def tensor_correlations(
    a: Checkpoint, b: Checkpoint, names: Sequence[str], *, max_elements: int | None = None
) -> dict[str, float]:
    """Centred correlation of each tensor of two or more dimensions; norms and biases say nothing.

    Constant tensors are left out. With `max_elements` only so many of each tensor are looked at:
    65,536 leave a correlation by chance below 0.02.
    """
    found: dict[str, float] = {}
    for name in names:
        if len(a[name].shape) < 2 or not a[name].dtype.mixable or a[name].numel < 16:
            continue
        x, y = _values(a, name, max_elements), _values(b, name, max_elements)
        x, y = x - x.mean(), y - y.mean()
        norm = math.sqrt(float(x @ x) * float(y @ y))
        if norm > 0:
            found[name] = float(x @ y) / norm
    return found


def relative_distances(kitchen: Kitchen) -> list[float]:
    """‖θᵢ − θ₀‖ / ‖θ₀‖ of every ingredient, θ₀ the base, else the mean of the ingredients."""
    given = kitchen.ingredients
    origin = kitchen.uniform(range(len(given))) if given.base is None else given.base
    squared, norm = np.zeros(len(given)), 0.0
    for name in sorted(given.averaged):
        if not given.specs[name].dtype.mixable or name not in origin:
            continue
        start = _values(origin, name)
        norm += float(start @ start)
        for i, checkpoint in enumerate(given):
            move = _values(checkpoint, name) - start
            squared[i] += float(move @ move)
    distances: list[float] = np.sqrt(squared / norm).tolist() if norm > 0 else [0.0] * len(given)
    return distances


def line_barrier(kitchen: Kitchen, a: int, b: int, *, n_points: int = 11) -> float | None:
    """max over the line of loss − interpolated end losses, cross-entropy in nats.

    Measured on the split that decides; None where outputs are no logits over classes.
    """
    evaluator, split = kitchen.scoring("a barrier")
    targets = evaluator.targets(split)
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    import torch

    grid = np.linspace(0, 1, n_points)
    losses = []
    for alpha in grid:
        shares = [0.0] * len(kitchen.ingredients)
        shares[a], shares[b] = 1.0 - float(alpha), float(alpha)
        outputs = evaluator.predictions(kitchen.mixture(shares), split).outputs
        if outputs.ndim != 2:
            return None
        losses.append(CrossEntropy().compute(torch.from_numpy(outputs.copy()), targets))
    straight = losses[0] + grid * (losses[-1] - losses[0])
    return float((np.array(losses) - straight).max())


def _unrelated(a: Checkpoint, b: Checkpoint, names: Sequence[str]) -> list[Finding]:
    correlations = tensor_correlations(a, b, names)
    if not correlations:
        return []
    low = [name for name, value in correlations.items() if value < UNRELATED]
    if len(low) > len(correlations) / 2:
        middle = float(np.median(list(correlations.values())))
        return [
            Finding(
                "no-shared-initialisation",
                f"{a.path} and {b.path} do not share an initialisation: the median correlation of "
                f"their tensors is {middle:.2f} (fine-tunes of one start measure above 0.9)",
                "average only models fine-tuned from one checkpoint; inspect --base tells which",
            )
        ]
    if low:
        return [
            Finding(
                "heads-differ",
                f"{', '.join(low[:4])} of {a.path} and {b.path} come from different starts "
                f"(correlation {min(correlations[n] for n in low):.2f}), the rest from one: heads "
                "initialised anew for each run are the most common reason why soups fail",
                "fine-tune all runs from one checkpoint that has the head already (a zero-shot "
                "head, or a linear probe first)",
            )
        ]
    return []


def _barrier(kitchen: Kitchen, a: int, b: int, n_points: int) -> list[Finding]:
    height = line_barrier(kitchen, a, b, n_points=n_points)
    # A tenth of a nat is well above what curvature alone gives between fine-tunes of one start.
    if height is None or height < 0.1:
        return []
    return [
        Finding(
            "barrier",
            f"between the two best, {kitchen.paths[a]} and {kitchen.paths[b]}, the loss rises by "
            f"{height:.2f} nat above the straight line ({n_points} points): they are not in one "
            "basin",
            "fine-tune with lower learning rates or fewer steps from one start, or average "
            "checkpoints of one run",
        )
    ]


def _outliers(kitchen: Kitchen) -> list[Finding]:
    distances = relative_distances(kitchen)
    middle = float(np.median(distances))
    far = [i for i, d in enumerate(distances) if middle > 0 and d > OUTLIER * middle]
    if len(distances) < 3 or not far:
        return []
    start = "the mean" if kitchen.ingredients.base is None else "the base"
    named = ", ".join(f"{kitchen.paths[i]} ({distances[i]:.3g})" for i in far[:5])
    return [
        Finding(
            "outlier",
            f"{named} moved much farther from {start} than the median ingredient ({middle:.3g}), "
            "as runs with too high a learning rate do",
            "leave them out; uniform soups suffer most from them, greedy ones skip them",
        )
    ]


def _values(
    checkpoint: Checkpoint, name: str, max_elements: int | None = None
) -> npt.NDArray[np.float64]:
    dtype = checkpoint[name].dtype
    return widen(checkpoint.raw(name).view(dtype.storage)[:max_elements], dtype.value)
