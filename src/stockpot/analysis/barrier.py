"""How high the loss rises on the straight line from one model to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from stockpot._types import JSON
from stockpot.analysis.calibration import negative_log_likelihood
from stockpot.analysis.space import WeightPoint, WeightSpace
from stockpot.evaluate.task import are_class_logits

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.formats.base import Checkpoint


HIGH_BARRIER = 0.1
"""Nats. Two models with a higher barrier between them do not lie in one basin: it is well above
what curvature alone gives between a model and its fine-tune, or fine-tunes of one start."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """`height` in the unit of the loss, reached at `alpha` (0 is the first model, 1 the second)."""

    height: float
    alpha: float


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> Barrier:
    """Largest excess of the loss on a path over the straight line between its two ends.

    B = max over a of L(θ_a) − [(1−a)·L(θ_0) + a·L(θ_1)], over the points given, ends included, so
    B ≥ 0. Near 0 the two models lie in one basin and average well; a barrier of the order of the
    loss of guessing says that they do not. It depends on how many points are looked at: 11 unless
    said otherwise.

    >>> barrier([0, 0.5, 1], [0.25, 2.0, 0.75])
    Barrier(height=1.5, alpha=0.5)

    Args:
        alphas: increasing, from 0 to 1.
        losses: mean loss at each, lower is better; nats for cross-entropy.

    Raises:
        ValueError: the points do not run from 0 to 1, or their numbers differ.

    Reference: Frankle et al. 2020, arXiv 1912.05671, §2 (error barrier).
    """
    a, loss = np.asarray(alphas, np.float64), np.asarray(losses, np.float64)
    if a.shape != loss.shape or a.ndim != 1:
        raise ValueError(f"{a.size} alphas and {loss.size} losses; expected one loss each")
    if len(a) < 2 or a[0] != 0 or a[-1] != 1 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas are {list(alphas)}; expected increasing from 0 to 1")
    excess = loss - ((1 - a) * loss[0] + a * loss[-1])
    highest = int(excess.argmax())
    return Barrier(float(excess[highest]), float(a[highest]))


def barrier_between(
    evaluator: Evaluator,
    split: str,
    at: Callable[[float], Checkpoint],
    alphas: Sequence[float],
) -> Barrier | None:
    """The barrier of the cross-entropy on `split` along `at(alpha)`, in nats.

    Args:
        evaluator: scores, from its journal where it can.
        split: held-out data.
        at: the weights at alpha: the first model at 0, the second at 1.
        alphas: increasing, from 0 to 1.

    Returns:
        None where outputs are no logits over classes, or a loss is not finite.
    """
    losses: list[float] = []
    for alpha in alphas:
        found = evaluator.predictions(at(alpha), split)
        if not are_class_logits(found.outputs, found.targets):
            return None
        losses.append(negative_log_likelihood(found.outputs, found.targets.numpy()))
    return barrier(alphas, losses) if np.isfinite(losses).all() else None


@dataclass(frozen=True, slots=True)
class ScoredLine:
    """Held-out loss and score on the line from `a` (α = 0) to `b` (α = 1).

    Attributes:
        kind: what it is about: `"base"`, `"runs"`, `"soup"`, `"greedy path"`, `"asked for"`.
        losses: mean cross-entropy in nats at each of `alphas`.
        scores: the task's metric there.
        barrier: largest excess of the loss over the straight line between its two ends, in nats.
        at: the α where it is reached.
    """

    a: str
    b: str
    kind: str
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    barrier: float
    at: float

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        entries: dict[str, JSON] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return entries


def line(
    space: WeightSpace,
    a: WeightPoint,
    b: WeightPoint,
    *,
    n_points: int = 11,
    kind: str = "asked for",
) -> ScoredLine:
    """Score the line between two points at `n_points` equal steps, ends included.

    A barrier depends on how many points are looked at: 11 unless said otherwise.
    """
    alphas = [round(float(alpha), 9) for alpha in np.linspace(0, 1, n_points)]
    measured = [space.measure(space.between(a, b, alpha)) for alpha in alphas]
    losses = [found.loss for found in measured]
    found = barrier(alphas, losses)
    return ScoredLine(
        a.name,
        b.name,
        kind,
        tuple(alphas),
        tuple(losses),
        tuple(found.score for found in measured),
        found.height,
        found.alpha,
    )
