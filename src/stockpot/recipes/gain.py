"""Is a soup better than what one had before, on data that had no part in choosing it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import SHIFT_AVERAGE, Difference, difference, shift_difference
from stockpot.evaluate.task import Role
from stockpot.io.paths import short_name

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.formats.base import Checkpoint

Verdict = Literal["gain", "no-gain", "worse", "untested"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A soup against one model: paired differences on data that chose neither of the two.

    The verdict is `"worse"` if the 95 % interval on a test split or on the shift average lies on
    the wrong side of 0, `"gain"` if one lies on the right side and none on the wrong one, else
    `"no-gain"`. Without such data, or with scores that have no examples behind them, it is
    `"untested"`.

    Attributes:
        model: path of the model that it is held against; None where there is none.
        splits: differences on the tests and on the shift average, soup less model.
        shifts: those on each shift, to read: they have no part in the verdict.
        metric: what was measured.
        higher_is_better: whether a positive difference is an improvement.
        is_same: whether the soup is that model.
        reason: why it is untested.
        advice: the end of the sentence; by default to keep the model, where there is no gain.
    """

    model: str | None = None
    splits: Mapping[str, Difference] = field(default_factory=dict)
    shifts: Mapping[str, Difference] = field(default_factory=dict)
    metric: str = "score"
    higher_is_better: bool = True
    is_same: bool = False
    reason: str = ""
    advice: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the differences say."""
        tested = [found for found in self.splits.values() if found.low is not None]
        if not tested:
            return "untested"
        if any(self._side(found) < 0 for found in tested):
            return "worse"
        return "gain" if any(self._side(found) > 0 for found in tested) else "no-gain"

    @property
    def difference(self) -> Difference | None:
        """The difference that decided: the first of the verdict's sign, else the first."""
        wanted = {"gain": 1, "worse": -1}.get(self.verdict, 0)
        found = list(self.splits.values())
        decided = [one for one in found if one.low is not None and self._side(one) == wanted]
        return next(iter(decided or found), None)

    def _side(self, found: Difference) -> int:
        """1 where the interval says better, -1 where it says worse, else 0."""
        if found.low is None or found.high is None or found.low <= 0 <= found.high:
            return 0
        return 1 if (found.low > 0) is self.higher_is_better else -1

    def __str__(self) -> str:
        """The sentence that every result begins with."""
        model = "the best single" if self.model is None else short_name(self.model)
        if self.verdict == "untested":
            return f"UNTESTED: {self.reason or 'nothing independent was measured'}"
        if self.is_same:
            return f"NO GAIN: the soup is {model}"
        # What decided comes first: a gain does not begin with a loss.
        first = self.difference
        ordered = sorted(self.splits.values(), key=lambda found: found is not first)
        measured = ", ".join(map(self._text, ordered))
        if self.verdict == "gain":
            return f"GAIN {measured} over {model}" + (f"; {self.advice}" if self.advice else "")
        word = "WORSE" if self.verdict == "worse" else "NO GAIN"
        return f"{word}: {measured} against {model}; {self.advice or f'keep {model}'}"

    def _text(self, found: Difference) -> str:
        """`+2.0 points on test (0.3 to 3.7)`."""
        return _measured(found, self.metric, f"on {found.split.replace('_', ' ')}")

    def to_json(self) -> dict[str, JSON]:
        """Verdict, the difference that decided, and the difference on every split that reports."""
        decided, every = self.difference, {**self.splits, **self.shifts}
        return {
            "verdict": self.verdict,
            "model": self.model,
            "split": None if decided is None else decided.split,
            "difference": None if decided is None else decided.value,
            "low": None if decided is None else decided.low,
            "high": None if decided is None else decided.high,
            "p_value": None if decided is None else decided.p_value,
            "splits": {split: found.to_json() for split, found in every.items()},
            "is_same": self.is_same,
            "reason": self.reason,
            "advice": self.advice,
            "text": str(self),
        }


def _measured(found: Difference, metric: str, where: str) -> str:
    """`+2.0 points WHERE (0.3 to 3.7)`."""
    scale, digits, unit = (100, 1, " points") if metric == "accuracy" else (1, 4, "")
    text = f"{scale * found.value:+.{digits}f}{unit} {where}"
    if found.low is None or found.high is None:
        return text
    bounds = [scale * found.low, scale * found.high]
    # An interval beside 0 shows on which side, however near.
    near = [b for b in bounds if b and not round(b, digits)]
    low, high = (f"{bound:.{digits + 2 * bool(near)}f}" for bound in bounds)
    return f"{text} ({low} to {high})"


def categories_lost(
    evaluator: Evaluator, soup: Checkpoint, model: Checkpoint, *, name: str
) -> list[str]:
    """For each split that reports, the categories in which `soup` is worse beyond noise.

    Beyond noise is that the 95 % interval of the paired difference lies on the wrong side of 0: of
    many categories, one in forty does so by chance.

    Args:
        evaluator: scores.
        soup: as it was scored.
        model: what it is held against.
        name: of the model, in the sentences.
    """
    sentences = []
    for split, given in evaluator.task.splits.items():
        if given.role is Role.HELD_OUT:
            continue
        lost = worse_categories(evaluator, soup, model, split)
        if lost:
            sentences.append(
                f"on {split} it is worse than {name} beyond noise in {len(lost)} of "
                f"{len(set(given.categories or ()))} categories: {', '.join(lost)}"
            )
    return sentences


def require_categories(evaluator: Evaluator, splits: Iterable[str]) -> None:
    """Refuse to keep the categories of splits that have none.

    Raises:
        RecipeError: names the first such split.
    """
    for split in splits:
        if evaluator.task.splits[split].categories is None or not evaluator.has_outputs:
            raise RecipeError(
                f"{split} has no categories to keep: give each example its own "
                "(Split(…, categories=[…]), or category: COLUMN in task.yaml)"
            )


def worse_categories(
    evaluator: Evaluator, soup: Checkpoint, model: Checkpoint, split: str
) -> list[str]:
    """The categories of a split in which `soup` is worse than `model` beyond noise, measured.

    Empty where the split has no categories, or scores have no examples behind them.
    """
    if evaluator.task.splits[split].categories is None or not evaluator.has_outputs:
        return []
    one, other = (evaluator.predictions(m, split).by_category() for m in (soup, model))
    lost = []
    for category, part in one.items():
        found = difference(part, other[category], split, seed=evaluator.seed)
        if found is None or found.within_noise is not False:
            continue
        if evaluator.metric.quality(found.value) < 0:
            lost.append(_measured(found, evaluator.metric.name, f"in {category}"))
    return lost


def measure_gain(
    evaluator: Evaluator, soup: Checkpoint, model: Checkpoint | None, *, path: str = ""
) -> Gain:
    """`soup` against `model` on every split of the task that reports.

    Scores that the journal knows are not made again.

    Args:
        evaluator: scores; one that only knows numbers leaves the gain untested.
        soup: as it was scored.
        model: what it has to beat; None where it is not known.
        path: of the model; by default its own.
    """
    metric = evaluator.metric
    about: dict[str, Any] = {"metric": metric.name, "higher_is_better": metric.higher_is_better}
    if model is None:
        return Gain(reason="there is no single model to hold it against", **about)
    name = path or model.path
    splits = evaluator.task.splits
    reporting = [name for name, split in splits.items() if split.role is not Role.HELD_OUT]
    about["model"] = name
    if not reporting:
        return Gain(reason="the task has no data that had no part in the choice", **about)
    own = {split: evaluator.predictions(soup, split) for split in reporting}
    other = {split: evaluator.predictions(model, split) for split in reporting}
    found: dict[str, Difference] = {}
    for split in reporting:
        paired = difference(own[split], other[split], split, against=name, seed=evaluator.seed)
        if paired is None:
            values = [
                evaluator.score_of(one[split], split, name=name, interval=False).value
                for one in (own, other)
            ]
            paired = Difference(value=values[0] - values[1], split=split, against=name)
        found[split] = paired
    shifts = {split for split in reporting if splits[split].role is Role.SHIFT}
    average = shift_difference(own, other, splits, against=name, seed=evaluator.seed)
    tests = {split: one for split, one in found.items() if split not in shifts}
    return Gain(
        splits={**tests, **({} if average is None else {SHIFT_AVERAGE: average})},
        shifts={split: found[split] for split in reporting if split in shifts},
        is_same=soup.key == model.key,
        reason="scores are single numbers, without examples behind them"
        if all(one.low is None for one in found.values())
        else "",
        **about,
    )
