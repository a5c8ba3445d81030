"""Scores of models, and what one is better by than another on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.errors import EvaluationError
from stockpot.evaluate.metrics import ByCategory, InOrder, positions_by_category, value_of
from stockpot.evaluate.stats import (
    Floats,
    bootstrap_mean,
    mcnemar,
    paired_permutation,
    quantiles,
    resampled_average,
)
from stockpot.evaluate.stats import shift_average as average_over_shifts
from stockpot.evaluate.task import Role, Score, Split

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.task import Metric

SHIFT_AVERAGE = "shift_average"
"""The key under which the plain mean over shift sets stands among the scores of splits."""


@dataclass(frozen=True)
class Predictions:
    """Outputs of one model on one split: float32 (n, …), with targets (n,).

    `per_example` is the metric of each example, float64 (n,); None for metrics that are no means.
    Those have `metric`, by which the outputs of some examples can be scored, if there are outputs.
    `categories` names that of each example, where the split has any.
    """

    outputs: npt.NDArray[np.float32]
    targets: torch.Tensor
    per_example: npt.NDArray[np.float64] | None
    metric: Metric | None = None
    categories: Sequence[str] | None = None

    def score(self, index: npt.NDArray[np.int64]) -> float:
        """The metric over the examples at `index`; not a number where it fails for want of some."""
        if self.metric is None:
            raise AssertionError("these predictions have no metric of their own")
        return self.of_resample(self.metric, index)

    def value(self, metric: Metric, index: npt.NDArray[np.int64] | None = None) -> float:
        """A metric over the examples at `index`, or over all."""
        import torch

        while isinstance(metric, InOrder):
            metric = metric.of
        if index is None:
            outputs, targets = torch.from_numpy(np.array(self.outputs)), self.targets
            return value_of(metric, outputs, targets, self.categories)
        by = metric if self.categories is not None and isinstance(metric, ByCategory) else None
        if by is not None and by.of.per_example is not None:
            names, place = self._categories
            return by.of_means(names, place[index], self._of_examples(by.of)[index])
        outputs, targets = torch.from_numpy(np.array(self.outputs[index])), self.targets[index]
        if by is None:
            return metric.compute(outputs, targets)
        names, place = self._categories
        held = {name: np.flatnonzero(place[index] == i) for i, name in enumerate(names)}
        return by.of_values(
            {name: by.of.compute(outputs[i], targets[i]) for name, i in held.items() if len(i)}
        )

    def of_resample(self, metric: Metric, index: npt.NDArray[np.int64]) -> float:
        """A metric over resampled examples; not a number where it fails for want of a class."""
        try:
            return self.value(metric, index)
        except EvaluationError:
            return math.nan

    @cached_property
    def _categories(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The categories by name, and which of them each example has."""
        names, place = np.unique(np.asarray(self.categories, dtype=np.str_), return_inverse=True)
        return names.tolist(), place

    def _of_examples(self, metric: Metric) -> Floats:
        """A metric of each example, made once: resamples ask for it a thousand times."""
        import torch

        known = self._known.get(id(metric))
        if known is None:
            if metric.per_example is None:
                raise AssertionError("this metric is no mean over examples")
            values = metric.per_example(torch.from_numpy(np.array(self.outputs)), self.targets)
            known = self._known[id(metric)] = (metric, values.double().numpy())
        return known[1]

    @cached_property
    def _known(self) -> dict[int, tuple[Metric, Floats]]:
        """By identity, with the metric, so that no other takes its place."""
        return {}

    def by_category(self) -> dict[str, Predictions]:
        """Category → predictions for its examples alone, by name; empty without categories."""
        found = {}
        for name, index in positions_by_category(self.categories or ()).items():
            own = None if self.per_example is None else self.per_example[index]
            found[name] = Predictions(
                self.outputs[index], self.targets[index], own, metric=self.metric
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Score of one model less score of another on the same examples.

    Its sign is that of the metric: a negative difference of losses is a gain.

    Attributes:
        value: the difference.
        low: of its 95 % interval; None, as `high`, where there are no examples behind the scores.
        high: of its 95 % interval.
        p_value: of no difference; None also for an average over shifts.
        split: where both were scored.
        against: the other model.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    split: str = ""
    against: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds 0; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high

    @property
    def numbers(self) -> tuple[float, ...]:
        """The value, and both bounds where there is an interval."""
        return tuple(v for v in (self.value, self.low, self.high) if v is not None)

    def to_json(self) -> dict[str, JSON]:
        """`{difference, low, high, p_value, within_noise}`."""
        return {
            "difference": self.value,
            "low": self.low,
            "high": self.high,
            "p_value": self.p_value,
            "within_noise": self.within_noise,
        }


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0) -> Difference:
    """Mean of a − b over the per-example scores (n,) of two models.

    The interval is a bootstrap over examples; the p-value is McNemar's when all scores are 0 or 1,
    else that of random sign flips.

    >>> paired_difference([1, 1, 0, 1], [1, 0, 0, 1]).value
    0.25
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = bootstrap_mean(x - y, seed=seed)
    value = float((x - y).mean())
    return Difference(value=value, low=low, high=high, p_value=_p_value(x, y, seed=seed))


def _p_value(x: Floats, y: Floats, *, seed: int) -> float:
    binary = bool(np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all())
    return mcnemar(x, y) if binary else paired_permutation(x, y, seed=seed)


def p_value(a: Predictions | None, b: Predictions | None, *, seed: int = 0) -> float | None:
    """Of no difference between two models on the same examples, as `compare` has it.

    None without predictions of both, and for metrics that are no means.
    """
    if a is None or b is None or a.per_example is None or b.per_example is None:
        return None
    return _p_value(a.per_example, b.per_example, seed=seed)


def difference(
    a: Predictions, b: Predictions, split: str, *, against: str = "", seed: int = 0
) -> Difference | None:
    """`compare` of two models on one split; None where scores have no examples behind them.

    For metrics that are no means over examples it is a paired bootstrap: both models are scored on
    the same resamples, and p is twice the smaller share of differences on one side of 0.
    """
    if a.per_example is not None and b.per_example is not None:
        found = paired_difference(a.per_example, b.per_example, seed=seed)
        return replace(found, split=split, against=against)
    if a.metric is None or b.metric is None:
        return None
    return _resampled({split: (a, b)}, {}, split=split, against=against, seed=seed)


def _resampled(
    pairs: Mapping[str, tuple[Predictions, Predictions]],
    images: Mapping[str, str],
    *,
    split: str,
    against: str,
    seed: int,
) -> Difference:
    """Mean over splits of the difference of two models, by a paired bootstrap over examples."""

    def gap(a: Predictions, b: Predictions) -> Callable[[npt.NDArray[np.int64]], float]:
        return lambda index: a.score(index) - b.score(index)

    statistics = {name: gap(a, b) for name, (a, b) in pairs.items()}
    sizes = {name: len(a.targets) for name, (a, _) in pairs.items()}
    value = sum(gap(np.arange(sizes[name])) for name, gap in statistics.items()) / len(pairs)
    values = resampled_average(statistics, sizes, images=images, seed=seed)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Difference(value=value, split=split, against=against)
    low, high = quantiles(values, 0.95)
    smaller = min(int((values <= 0).sum()), int((values >= 0).sum()))
    p = min(1.0, 2 * (1 + smaller) / (1 + len(values)))
    return Difference(value=value, low=low, high=high, p_value=p, split=split, against=against)


def shift_difference(
    a: Mapping[str, Predictions],
    b: Mapping[str, Predictions],
    splits: Mapping[str, Split],
    *,
    against: str = "",
    seed: int = 0,
) -> Difference | None:
    """The difference of two models averaged over the shift sets among `a`.

    Sets that show the same images are resampled jointly. None where there is no shift set, or
    scores have no examples behind them.

    Args:
        a: predictions of one model by split; what is no shift is left aside.
        b: those of the other.
        splits: of the task.
        against: name of the other.
        seed: of the resampling.
    """
    values = {}
    shifts = shifts_among(a, splits)
    for split in shifts:
        one, other = a[split].per_example, b[split].per_example
        if one is None or other is None:
            pairs = {name: (a[name], b[name]) for name in shifts}
            if any(two.metric is None for pair in pairs.values() for two in pair):
                return None
            images = _shared_images(shifts, splits)
            found = _resampled(pairs, images, split=SHIFT_AVERAGE, against=against, seed=seed)
            return replace(found, p_value=None)
        values[split] = one - other
    if not values:
        return None
    value, low, high = shift_average(values, splits, seed=seed)
    return Difference(value=value, low=low, high=high, split=SHIFT_AVERAGE, against=against)


def shift_average(
    values: Mapping[str, npt.NDArray[np.float64]], splits: Mapping[str, Split], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over the shift sets of their per-example `values`, with its interval: value, low, high.

    `stats.shift_average` with what `splits` say of shared images.
    """
    return average_over_shifts(values, images=_shared_images(values, splits), seed=seed)


def _shared_images(names: Iterable[str], splits: Mapping[str, Split]) -> dict[str, str]:
    return {name: shared for name in names if (shared := splits[name].images) is not None}


def shifts_among(names: Mapping[str, object], splits: Mapping[str, Split]) -> list[str]:
    """Those of `names` that are shift splits and count in their average, in order."""
    known = {name: splits[name] for name in names if name in splits}
    return [name for name, one in known.items() if one.role is Role.SHIFT and one.averaged]


def scores_to_json(scores: Mapping[str, Score | None]) -> dict[str, JSON]:
    """`{split: {value, low, high, n, metric}}`; null for what was not computed."""
    return {
        name: None
        if score is None
        else {
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
            "metric": score.metric,
        }
        for name, score in scores.items()
    }
