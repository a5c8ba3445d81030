"""Why a soup failed: what of the usual reasons holds for these ingredients, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from stockpot._types import JSON
from stockpot.analysis.barrier import HIGH_BARRIER, barrier_between
from stockpot.analysis.geometry import measure_geometry, outlier_text
from stockpot.analysis.initialisation import check_initialisation
from stockpot.mixing import Coefficients, Mixture

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.mixing.ingredients import Ingredients


Kind = Literal["barrier", "no-shared-initialisation", "heads-differ", "outlier", "nothing-found"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason, in a sentence with its numbers, and what to try."""

    kind: Kind
    text: str
    remedy: str

    def to_json(self) -> dict[str, JSON]:
        """The three fields."""
        return {**asdict(self)}


def explain(
    ingredients: Ingredients,
    best_first: Sequence[int],
    *,
    evaluator: Evaluator | None = None,
    split: str | None = None,
    mix: Callable[[Sequence[float]], Mixture] | None = None,
    n_points: int = 5,
) -> list[Finding]:
    """Look for the usual reasons why averages of `ingredients` are bad.

    Args:
        ingredients: what was averaged, and its base, if there is one.
        best_first: positions of the ingredients by score; the barrier is measured between the
            first two.
        evaluator: scores the line between them; without one it is not measured.
        split: held-out data on which it does.
        mix: the soup of given coefficients; by default a plain mixture.
        n_points: points of that line, ends included; fewer than two leave it out.
    """
    findings: list[Finding] = []
    if len(best_first) >= 2:
        a, b = best_first[:2]
        findings += _initialisation(ingredients, a, b)
        if evaluator is not None and split is not None and evaluator.has_outputs and n_points > 1:

            def at(alpha: float) -> Mixture:
                shares = [0.0] * len(ingredients)
                shares[a], shares[b] = 1.0 - alpha, alpha
                if mix is not None:
                    return mix(shares)
                return Mixture(ingredients, Coefficients.per_model(shares))

            alphas = np.linspace(0, 1, n_points).tolist()
            found = barrier_between(evaluator, split, at, alphas)
            if found is not None and found.height >= HIGH_BARRIER:
                findings.append(_barrier(ingredients, a, b, found.height, n_points))
    findings += _outliers(ingredients)
    return findings or [
        Finding(
            "nothing-found",
            "none of the usual reasons was found (no shared start, other heads, a barrier "
            "between the best two, one far from the others): by the data that choose, no average "
            "that was tried is better than the best single model",
            "see whether the mean of all is better on other data (stockpot diagnose), use the best "
            "single model, or make more varied ingredients (stockpot sweep)",
        )
    ]


def expected_collapse(ingredients: Ingredients) -> str:
    """Why the uniform soup will probably collapse, from the sizes of the moves; empty if not.

    Nothing is scored: the weights are read once.
    """
    paths = [one.path for one in ingredients]
    return outlier_text(paths, relative_distances(ingredients), _start_of(ingredients))


def _start_of(ingredients: Ingredients) -> str:
    return "the mean" if ingredients.base is None else "the base"


def relative_distances(ingredients: Ingredients) -> list[float]:
    """‖θᵢ − θ₀‖ / ‖θ₀‖ of every ingredient, θ₀ the base, else the mean of the ingredients."""
    k = len(ingredients)
    mean = Mixture(ingredients, Coefficients.per_model([1.0 / k] * k))
    origin = mean if ingredients.base is None else ingredients.base
    moves = measure_geometry(list(ingredients), origin).moves()
    return [move.distance or 0.0 for move in moves.ingredients]


def _initialisation(ingredients: Ingredients, a: int, b: int) -> Iterator[Finding]:
    found = check_initialisation(ingredients[b], ingredients[a], ingredients.averaged)
    paths = f"{ingredients[a].path} and {ingredients[b].path}"
    if found.is_different:
        yield Finding(
            "no-shared-initialisation",
            f"{paths} do not share an initialisation: the median correlation of their tensors is "
            f"{found.evidence.correlation:.2f} (fine-tunes of one start measure above 0.9)",
            "average only models fine-tuned from one checkpoint; inspect --base shows which",
        )
    elif found.unrelated:
        yield Finding(
            "heads-differ",
            f"{', '.join(found.unrelated[:4])} of {paths} come from different starts "
            f"(correlation {found.lowest:.2f}), the rest from one: heads initialised for each run "
            "on its own are the most common reason why soups fail",
            "fine-tune all runs from one checkpoint that has the head already (a zero-shot "
            "head, or a linear probe first)",
        )


def _barrier(ingredients: Ingredients, a: int, b: int, height: float, n_points: int) -> Finding:
    return Finding(
        "barrier",
        f"between the two best, {ingredients[a].path} and {ingredients[b].path}, the loss rises by "
        f"{height:.2f} nat above the straight line ({n_points} points): they are not in one basin",
        "fine-tune with lower learning rates or fewer steps from one start, or average "
        "checkpoints of one run",
    )


def _outliers(ingredients: Ingredients) -> Iterator[Finding]:
    found = expected_collapse(ingredients)
    if not found:
        return
    yield Finding(
        "outlier",
        f"{found}; runs with too high a learning rate do",
        "leave them out; uniform soups suffer most from them, greedy ones skip them",
    )
