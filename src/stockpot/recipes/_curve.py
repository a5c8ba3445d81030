"""What is measured along a line, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.analysis.barrier import barrier_between
from stockpot.analysis.diversity import diversity, override
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    scores_to_json,
    shift_difference,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Score, are_class_logits

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


_Outputs = npt.NDArray[np.float32]

Points = Mapping[float, Mapping[str, Score]]
"""α → scores by split."""

MEAN_OF_BOTH = "mean_of_both"
"""The mean of the reference score and of the shift average, which one number has to stand for."""


@dataclass(frozen=True)
class Curve:
    """A line that was scored.

    Attributes:
        evaluator: what scored it.
        at: the weights at α.
        points: the scores.
    """

    evaluator: Evaluator
    at: Callable[[float], Checkpoint]
    points: Points

    @property
    def splits(self) -> list[str]:
        """What was scored; the shift average is none."""
        return [s for s in next(iter(self.points.values())) if s != SHIFT_AVERAGE]

    def predictions(self, alpha: float, split: str) -> Predictions:
        """Outputs at α, which the journal knows."""
        return self.evaluator.predictions(self.at(alpha), split)


def along(
    evaluator: Evaluator,
    at: Callable[[float], Checkpoint],
    alphas: Iterable[float],
    splits: Sequence[str],
    *,
    label: str = "points of the curve",
) -> Curve:
    """Score every point: weights are swapped into one model."""
    grid = sorted(alphas)
    points: dict[float, Mapping[str, Score]] = {}
    for number, alpha in enumerate(grid, 1):
        points[alpha] = evaluator.scores(at(alpha), splits)
        evaluator.progress(number, len(grid), label)
    return Curve(evaluator, at, points)


def points_to_json(points: Points) -> JSON:
    """`[{"alpha", "scores"}]`."""
    return [{"alpha": a, "scores": scores_to_json(scores)} for a, scores in points.items()]


def best_alphas(points: Points, reference: str | None) -> JSON:
    """`{objective: {alpha, value, above_ends}}`, to read and not to choose by.

    Objectives are all splits, the shift average, and, where there is one, its mean with the score
    on `reference`. `above_ends` is how much better the best α is than the better end; for a split
    that reports it flatters, since this α was looked up on it.
    """
    ends = points[0.0]
    columns = {name: {a: s[name].value for a, s in points.items()} for name in ends}
    if reference in columns and SHIFT_AVERAGE in columns:
        columns[MEAN_OF_BOTH] = {
            a: (columns[reference][a] + columns[SHIFT_AVERAGE][a]) / 2 for a in points
        }
    quality = next(iter(ends.values())).quality
    return {name: _best(values, quality) for name, values in columns.items()}


def _best(values: Mapping[float, float], quality: Callable[[float], float]) -> JSON:
    alpha = max(values, key=lambda a: (quality(values[a]), -abs(a - 0.5)))
    end = max(quality(values[0.0]), quality(values[1.0]))
    return {"alpha": alpha, "value": values[alpha], "above_ends": quality(values[alpha]) - end}


def gains(curve: Curve, alpha: float) -> JSON:
    """The point α against the base and against the tuned model, on the same examples.

    `{"base" | "tuned": {split: {difference, low, high, p_value, within_noise}}}`; what has no
    meaning for the metric is null.
    """
    return {
        name: {s: gap.to_json() for s, gap in _gains(curve, alpha, name, end).items()}
        for name, end in (("base", 0.0), ("tuned", 1.0))
    }


def _gains(curve: Curve, alpha: float, name: str, end: float) -> dict[str, Difference]:
    evaluator = curve.evaluator
    here, there = ({s: curve.predictions(x, s) for s in curve.splits} for x in (alpha, end))
    found: dict[str, Difference] = {}
    for split in curve.splits:
        gap = difference(here[split], there[split], split, against=name, seed=evaluator.seed)
        if gap is None:
            value = curve.points[alpha][split].value - curve.points[end][split].value
            gap = Difference(value=value, split=split, against=name)
        found[split] = gap
    average = shift_difference(
        here, there, evaluator.task.splits, against=name, seed=evaluator.seed
    )
    return found if average is None else {**found, SHIFT_AVERAGE: average}


def ensembles(curve: Curve, *, of_probabilities: bool = False) -> Points:
    """The two ends mixed in output space at every α: (1−α)·f₀ + α·f₁, two passes for one answer.

    Of logits; or of the probabilities that their softmax gives, as logits again.
    """
    ends = {
        s: (curve.predictions(0.0, s).outputs, curve.predictions(1.0, s).outputs)
        for s in curve.splits
    }
    mix = _mixed_probabilities if of_probabilities else _mixed_logits
    found: dict[float, Mapping[str, Score]] = {}
    for alpha in curve.points:
        mixed = {
            s: curve.evaluator.from_outputs(_between(base, tuned, alpha, mix), s)
            for s, (base, tuned) in ends.items()
        }
        found[alpha] = curve.evaluator.scores_of(mixed, name="an ensemble")
    return found


def _between(
    base: _Outputs,
    tuned: _Outputs,
    alpha: float,
    mix: Callable[[_Outputs, _Outputs, float], _Outputs],
) -> _Outputs:
    # The ends as they are: 0 · −∞ of a masked class is no number.
    return mix(base, tuned, alpha) if 0 < alpha < 1 else tuned if alpha else base


def _mixed_logits(base: _Outputs, tuned: _Outputs, alpha: float) -> _Outputs:
    return (1.0 - alpha) * base + alpha * tuned


def _mixed_probabilities(base: _Outputs, tuned: _Outputs, alpha: float) -> _Outputs:
    from scipy.special import log_softmax

    wide = (x.astype(np.float64) for x in (base, tuned))
    of_base, of_tuned = (log_softmax(x, axis=-1) for x in wide)
    mixed = np.logaddexp(np.log1p(-alpha) + of_base, np.log(alpha) + of_tuned)
    return np.asarray(mixed, np.float32)


def barrier_of(curve: Curve, split: str) -> JSON:
    """How far the cross-entropy on `split` rises above the straight line, in nats, and where.

    `{height, alpha, split}`; null where outputs are no logits over classes.
    """
    found = barrier_between(curve.evaluator, split, curve.at, list(curve.points))
    return None if found is None else {**asdict(found), "split": split}


def diversity_of(curve: Curve) -> JSON:
    """How differently base and tuned model decide on each split, and whom the middle follows.

    `{split: {prediction, kappa, kl, cka, margin_base, margin_tuned, n, override}}`.
    """
    return {
        s: _diversity(curve, s)
        for s in curve.splits
        if are_class_logits(curve.predictions(0.0, s).outputs, curve.evaluator.targets(s))
    }


def _diversity(curve: Curve, split: str) -> JSON:
    base, tuned, middle = (curve.predictions(a, split).outputs for a in (0.0, 1.0, 0.5))
    found = asdict(diversity(base, tuned, curve.evaluator.targets(split).numpy()))
    found["margin_base"], found["margin_tuned"] = found.pop("margin_f"), found.pop("margin_g")
    followed = asdict(override(*(x.argmax(1) for x in (base, tuned, middle))))
    followed["base"], followed["tuned"] = followed.pop("first"), followed.pop("second")
    return {**found, "override": {k: v for k, v in followed.items() if k != "n"}}
