"""Scores along a WiSE-FT interpolation path, and what is measured between its two ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.analysis.barrier import Barrier, barrier_between
from stockpot.analysis.diversity import Diversity, Override, diversity, override
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    shift_difference,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Score, are_class_logits
from stockpot.recipes.gain import worse_categories
from stockpot.recipes.interpolation_details import MEAN_OF_BOTH, BestAlpha, InterpolationPoint

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


_Outputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoredPath:
    """A path whose points were scored.

    Attributes:
        evaluator: what scored it.
        at: the weights at α.
        points: the scores, α rising.
        base: whose categories are to be kept; None where that is the point 0.
    """

    evaluator: Evaluator
    at: Callable[[float], Checkpoint]
    points: tuple[InterpolationPoint, ...]
    base: Checkpoint | None = None

    @property
    def alphas(self) -> list[float]:
        """Where it was scored."""
        return [point.alpha for point in self.points]

    @property
    def splits(self) -> list[str]:
        """What was scored; the shift average is none."""
        return [split for split in self.points[0].scores if split != SHIFT_AVERAGE]

    def scores(self, alpha: float) -> Mapping[str, Score]:
        """The scores at a point that was scored."""
        return next(point.scores for point in self.points if point.alpha == alpha)

    def predictions(self, alpha: float, split: str) -> Predictions:
        """Outputs at α, which the journal knows."""
        return self.evaluator.predictions(self.at(alpha), split)

    def loses_categories(self, model: Checkpoint, splits: Iterable[str]) -> bool:
        """Whether `model` is worse than the base in a category of the splits, beyond noise."""
        base = self.at(0.0) if self.base is None else self.base
        return any(worse_categories(self.evaluator, model, base, split) for split in splits)

    def best_alpha(self, splits: Sequence[str], *, keep: bool) -> float:
        """The best point; with `keep`, of those that lose no category to the base.

        Raises:
            RecipeError: every point loses one, as layers with an α of their own can bring about.
        """
        best_first = sorted(
            self.alphas,
            key=lambda alpha: (*self._standing_at(alpha, splits), -abs(alpha - 0.5)),
            reverse=True,
        )
        for alpha in best_first:
            if not keep or not self.loses_categories(self.at(alpha), splits):
                return alpha
        raise RecipeError(
            "every point of the path loses a category to the base: leave out layer_alphas "
            "(--layer-alpha), or keep_categories (--keep-categories)"
        )

    def _standing_at(self, alpha: float, splits: Sequence[str]) -> tuple[float, ...]:
        """As `standing`; outputs are looked at only where they break ties."""
        if self.evaluator.then:
            return self.standing(self.at(alpha), splits)
        return (self.evaluator.metric.quality(mean_score(self.scores(alpha), splits)),)

    def standing(self, model: Checkpoint, splits: Sequence[str]) -> tuple[float, ...]:
        """What models are compared by: the means over the splits of `Evaluator.standing`."""
        found = [
            self.evaluator.standing(self.evaluator.predictions(model, split), split)
            for split in splits
        ]
        return tuple(sum(column) / len(splits) for column in zip(*found, strict=True))


def mean_score(scores: Mapping[str, Score], names: Sequence[str]) -> float:
    """The plain mean of the scores of these splits."""
    return sum(scores[name].value for name in names) / len(names)


def score_path(
    evaluator: Evaluator,
    at: Callable[[float], Checkpoint],
    alphas: Iterable[float],
    splits: Sequence[str],
    *,
    label: str = "points of the curve",
) -> ScoredPath:
    """Score every point: weights are swapped into one model."""
    grid = sorted(alphas)
    points = []
    for number, alpha in enumerate(grid, 1):
        points.append(InterpolationPoint(alpha, evaluator.scores(at(alpha), splits)))
        evaluator.progress(number, len(grid), label)
    return ScoredPath(evaluator, at, tuple(points))


def best_alphas(
    points: Sequence[InterpolationPoint], reference: str | None
) -> dict[str, BestAlpha]:
    """The best α by objective: all splits, the shift average, and the mean of it and `reference`.

    To read and not to choose by.
    """
    ends = points[0].scores
    columns = {name: {p.alpha: p.scores[name].value for p in points} for name in ends}
    if reference in columns and SHIFT_AVERAGE in columns:
        shifted = columns[SHIFT_AVERAGE]
        columns[MEAN_OF_BOTH] = {a: (v + shifted[a]) / 2 for a, v in columns[reference].items()}
    quality = next(iter(ends.values())).quality
    return {name: _best(values, quality) for name, values in columns.items()}


def _best(values: Mapping[float, float], quality: Callable[[float], float]) -> BestAlpha:
    alpha = max(values, key=lambda a: (quality(values[a]), -abs(a - 0.5)))
    end = max(quality(values[0.0]), quality(values[1.0]))
    return BestAlpha(alpha, values[alpha], quality(values[alpha]) - end)


def gains_over_ends(path: ScoredPath, model: Checkpoint) -> dict[str, dict[str, Difference]]:
    """A model against the base and against the tuned model, on the same examples."""
    return {end: _gains(path, model, end, at) for end, at in (("base", 0.0), ("tuned", 1.0))}


def _gains(path: ScoredPath, model: Checkpoint, name: str, end: float) -> dict[str, Difference]:
    evaluator = path.evaluator
    here = {s: evaluator.predictions(model, s) for s in path.splits}
    there = {s: path.predictions(end, s) for s in path.splits}
    found: dict[str, Difference] = {}
    for split in path.splits:
        gap = difference(here[split], there[split], split, against=name, seed=evaluator.seed)
        if gap is None:
            value = evaluator.score(model, split).value - path.scores(end)[split].value
            gap = Difference(value=value, split=split, against=name)
        found[split] = gap
    average = shift_difference(
        here, there, evaluator.task.splits, against=name, seed=evaluator.seed
    )
    return found if average is None else {**found, SHIFT_AVERAGE: average}


def ensembles(
    path: ScoredPath, *, of_probabilities: bool = False
) -> tuple[InterpolationPoint, ...]:
    """The two ends mixed in output space at every α: (1−α)·f₀ + α·f₁, two passes for one answer.

    Of logits; or of the probabilities that their softmax gives, as logits again.
    """
    ends = {
        s: (path.predictions(0.0, s).outputs, path.predictions(1.0, s).outputs) for s in path.splits
    }
    mix = _mixed_probabilities if of_probabilities else _mixed_logits
    points = []
    for alpha in path.alphas:
        mixed = {
            s: path.evaluator.from_outputs(_between(base, tuned, alpha, mix), s)
            for s, (base, tuned) in ends.items()
        }
        scores = path.evaluator.scores_of(mixed, name="an ensemble")
        points.append(InterpolationPoint(alpha, scores))
    return tuple(points)


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


def path_barrier(path: ScoredPath, split: str) -> Barrier | None:
    """How far the cross-entropy on `split` rises above the straight line, in nats, and where."""
    return barrier_between(path.evaluator, split, path.at, path.alphas)


def diversity_of_ends(path: ScoredPath) -> dict[str, tuple[Diversity, Override]]:
    """How differently base and tuned model decide on each split, and whom the middle follows."""
    found = {}
    for split in path.splits:
        base, tuned, middle = (path.predictions(a, split).outputs for a in (0.0, 1.0, 0.5))
        targets = path.evaluator.targets(split)
        if are_class_logits(base, targets):
            followed = override(*(outputs.argmax(1) for outputs in (base, tuned, middle)))
            found[split] = (diversity(base, tuned, targets.numpy()), followed)
    return found
