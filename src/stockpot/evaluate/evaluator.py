"""What scores checkpoints: scores with their uncertainty, each computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import EvaluationError, StockpotError
from stockpot.evaluate.compare import SHIFT_AVERAGE, Predictions, shift_average, shifts_among
from stockpot.evaluate.journal import Journal
from stockpot.evaluate.metrics import InOrder
from stockpot.evaluate.splits import with_metric
from stockpot.evaluate.stats import bootstrap_interval, bootstrap_mean, clopper_pearson
from stockpot.evaluate.task import are_class_logits

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.batchnorm import BatchNormPolicy
    from stockpot.evaluate.task import Metric, Score, Split, Task, are_class_logits
    from stockpot.formats.base import Checkpoint


@dataclass
class Counters:
    """Forward passes that were really made, in examples; what the journal knew is not in them."""

    examples: int = 0
    calibration: int = 0


class Evaluator(ABC):
    """Scores checkpoints on splits, and never the same content twice.

    `TaskEvaluator` runs a model on a task's data; `CommandEvaluator` and `CallableEvaluator` ask a
    program or a function of yours for a number, and know no examples.

    Attributes:
        task: splits with their roles, and the metric; a `Task` also makes models and data.
        then: metrics that decide in order where models are equal by that of the task.
        journal: where results are kept.
        seed: of bootstrap intervals, permutations and calibration orders.
        progress: called with what has been done.
        counters: what scoring took so far.
        notes: what a person should know, one sentence each.
    """

    has_outputs: bool = False
    """Whether predictions are outputs by example, which can be averaged and compared."""

    n_ahead: int = 0
    """How many candidates are worth giving to `score_ahead` at once."""

    def __init__(
        self, task: Task, *, journal: Journal, seed: int = 0, progress: Progress = no_progress
    ) -> None:
        metric = task.metric
        self.then: tuple[Metric, ...] = metric.then if isinstance(metric, InOrder) else ()
        self.task = with_metric(task, metric.of) if isinstance(metric, InOrder) else task
        self.journal = journal
        self.seed = seed
        self.progress = progress
        self.counters = Counters()
        self.notes: list[str] = []

    @abstractmethod
    def predictions(self, source: Checkpoint, split: str) -> Predictions:
        """What `source` gives on a split, from the journal as far as it knows it."""

    @abstractmethod
    def targets(self, split: str) -> torch.Tensor:
        """Targets (n,) of a split, in order."""

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """What a split contains, as a hash."""

    @property
    def metric(self) -> Metric:
        """How outputs become one number, and which direction of it is better."""
        return self.task.metric

    def with_progress(self, progress: Progress) -> Self:
        """The same evaluator, sharing everything, that reports to `progress`."""
        other = copy(self)
        other.progress = progress
        return other

    def close(self) -> None:
        """Close the journal; it opens again when it is needed."""
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def n_examples(self, split: str) -> int:
        """Examples of a split."""
        return len(self._split(split).dataset)  # type: ignore[arg-type]

    def score_ahead(self, sources: Sequence[Checkpoint], split: str) -> None:  # noqa: B027
        """Score side by side what may be asked for next; it is then found in the journal.

        Of candidates that are tried against one soup most are rejected, so trying the next few at
        once wastes little, and the answer is that of one after the other.
        """

    def batchnorm_policy(self, source: Checkpoint) -> BatchNormPolicy | None:
        """The policy that made the BatchNorm statistics with which `source` is scored.

        None where it has none, brings them as overrides, or where no model is run.
        """
        return None

    def recalibrates(self, source: Checkpoint) -> bool:
        """Whether `source` is scored with BatchNorm statistics of its own calibration pass."""
        return self.batchnorm_policy(source) not in (None, "averaged")

    def calibration_size(self) -> int:
        """Examples of one calibration pass; 0 where there is none."""
        return 0

    def statistics(self, source: Checkpoint) -> dict[str, torch.Tensor]:
        """The BatchNorm statistics with which `source` is scored, by state-dict name."""
        return {}

    def with_batchnorm(self, policy: BatchNormPolicy) -> Self:
        """The same evaluator under another BatchNorm policy, with counters of its own.

        Where no model is run it is this one.
        """
        return self

    def with_default_batchnorm(self, policy: BatchNormPolicy | None) -> Self:
        """The same evaluator, settled on a policy: the one it was made with, else `policy`.

        None stands for what suits the task. It shares everything, and what is settled stays so:
        recipes that call others score all of them alike.
        """
        return self

    def from_outputs(self, outputs: npt.NDArray[np.float32], split: str) -> Predictions:
        """`outputs` of all examples of a split, with the metric of each."""
        import torch

        targets, categories = self.targets(split), self._split(split).categories
        per_example = self.metric.per_example
        if per_example is None:
            return Predictions(outputs, targets, None, self.metric, categories)
        _require_classes(outputs, targets, split)
        try:
            values = per_example(torch.from_numpy(np.array(outputs)), targets).double().numpy()
        except StockpotError:
            raise
        except Exception as error:  # whatever the task's code raises
            raise EvaluationError(
                f"split {split!r}: the metric {self.metric.name} fails: {one_line(error)}"
            ) from error
        self.require_in_range(values, split)
        return Predictions(outputs, targets, values, categories=categories)

    def score(self, source: Checkpoint, split: str) -> Score:
        """The metric of `source` on `split` with a 95 % interval.

        Raises:
            EvaluationError: the weights do not fit, a score is not a number, or the split is empty.
        """
        return self.score_of(self.predictions(source, split), split, name=source.path)

    def scores(self, source: Checkpoint, splits: Iterable[str] | None = None) -> dict[str, Score]:
        """Scores on `splits` (all when None), and their `shift_average` when there are shifts."""
        names = list(self.task.splits if splits is None else splits)
        found = {name: self.predictions(source, name) for name in names}
        return self.scores_of(found, name=source.path)

    def scores_of(
        self, predictions: Mapping[str, Predictions], *, name: str = "the model"
    ) -> dict[str, Score]:
        """Scores of outputs that are already there, by split, with the average over shifts."""
        scores = {s: self.score_of(p, s, name=name) for s, p in predictions.items()}
        shifts = shifts_among(predictions, self.task.splits)
        if shifts:
            scores[SHIFT_AVERAGE] = self._shift_average({s: predictions[s] for s in shifts}, scores)
        return scores

    def scores_by(
        self, metric: Metric, predictions: Mapping[str, Predictions], *, name: str = "the model"
    ) -> dict[str, Score]:
        """Scores by another metric of outputs that are already there: no model is run."""
        other = self.by_metric(metric)
        return other.scores_of(
            {split: other.from_outputs(one.outputs, split) for split, one in predictions.items()},
            name=name,
        )

    def by_metric(self, metric: Metric) -> Self:
        """The same evaluator for outputs that are already there, by another metric."""
        other = copy(self)
        other.task, other.then = with_metric(self.task, metric), ()
        return other

    def standing(
        self, predictions: Predictions, split: str, *, name: str = "the model"
    ) -> tuple[float, ...]:
        """What models are compared by: the qualities by the metric and by `then`, in order.

        Larger is better, and tuples are compared as Python does: exactly.
        """
        value = self.score_of(predictions, split, name=name, interval=False).value
        return self.metric.quality(value), *self.tie_breakers(predictions, split, name=name)

    def standing_of(
        self, value: float, model: Callable[[], Checkpoint], split: str
    ) -> tuple[float, ...]:
        """`standing` of a model whose score is known: its outputs are asked for only by `then`."""
        first = self.metric.quality(value)
        if not self.then:
            return (first,)
        return first, *self.tie_breakers(self.predictions(model(), split), split)

    def tie_breakers(
        self, predictions: Predictions, split: str, *, name: str = "the model"
    ) -> tuple[float, ...]:
        """The qualities by the metrics of `then`, in order; larger is better."""
        values = [predictions.value(metric) for metric in self.then]
        for metric, value in zip(self.then, values, strict=True):
            self.by_metric(metric).require_numbers(np.array([value]), split, name=name)
        return tuple(metric.quality(value) for metric, value in zip(self.then, values, strict=True))

    def score_of(
        self,
        predictions: Predictions,
        split: str,
        *,
        name: str = "the model",
        interval: bool = True,
    ) -> Score:
        """The score of outputs that are already there; its interval can be left out."""
        from stockpot.evaluate.task import Score

        value = predictions.value(self.metric)
        self.require_numbers(np.array([value]), split, name=name)
        low, high = self._interval(predictions) if interval else (None, None)
        return Score(
            value=value,
            n=len(predictions.targets),
            low=low,
            high=high,
            metric=self.metric.name,
            split=split,
            higher_is_better=self.metric.higher_is_better,
        )

    def require_numbers(
        self, values: npt.NDArray[np.float64], split: str, *, name: str = "the model"
    ) -> None:
        """Refuse values that are not finite.

        Raises:
            EvaluationError: names the model, the split and the metric.
        """
        if bool(np.isfinite(values).all()):
            return
        worst = values[~np.isfinite(values)][0]
        raise EvaluationError(
            f"{self.metric.name} of {name} on {split} is {worst}; its weights or the metric "
            "are at fault. Leave this ingredient out, or choose a metric that is defined here."
        )

    def require_in_range(
        self,
        values: npt.NDArray[np.float64],
        split: str,
        *,
        indices: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Refuse per-example values outside the range that the metric declares.

        Args:
            values: (n,) of the examples at `indices`, of all when None.
            split: where these examples are.
            indices: positions in the split.

        Raises:
            EvaluationError: names the metric, the first example and its value.
        """
        metric = self.metric
        outside = np.flatnonzero((values < metric.low) | (values > metric.high))
        if len(outside) == 0:
            return
        first = int(outside[0])
        example = first if indices is None else int(indices[first])
        raise EvaluationError(
            f"{metric.name} of example {example} on {split} is {values[first]}, outside the range "
            f"{metric.low:g} to {metric.high:g} that the metric declares ({len(outside)} examples "
            "are); declare a wider one (low=…, high=…), or clamp what it returns"
        )

    def _shift_average(
        self, shifts: Mapping[str, Predictions], scores: Mapping[str, Score]
    ) -> Score:
        values = {s: p.per_example for s, p in shifts.items() if p.per_example is not None}
        first = scores[next(iter(shifts))]
        n = sum(scores[s].n for s in shifts)
        if len(values) < len(shifts):  # the metric is no mean over examples
            value = sum(scores[s].value for s in shifts) / len(shifts)
            return replace(first, value=value, n=n, low=None, high=None, split=SHIFT_AVERAGE)
        value, low, high = shift_average(values, self.task.splits, seed=self.seed)
        return replace(first, value=value, n=n, low=low, high=high, split=SHIFT_AVERAGE)

    def _interval(self, predictions: Predictions) -> tuple[float | None, float | None]:
        values = predictions.per_example
        n = len(predictions.targets)
        if values is None:
            return bootstrap_interval(
                lambda i: predictions.of_resample(self.metric, i),
                n,
                n_resamples=200,
                seed=self.seed,
            )
        if bool(np.isin(values, (0, 1)).all()):
            return clopper_pearson(int(values.sum()), n)
        return bootstrap_mean(values, seed=self.seed)

    def _split(self, name: str) -> Split:
        try:
            return self.task.splits[name]
        except KeyError:
            known = ", ".join(self.task.splits)
            raise EvaluationError(f"the task has no split {name!r}; it has {known}") from None


def _require_classes(outputs: npt.NDArray[np.float32], targets: torch.Tensor, split: str) -> None:
    """Refuse labels for which a classifier has no output.

    Raises:
        EvaluationError: naming the first example.
    """
    if not are_class_logits(outputs, targets):
        return
    n_classes = outputs.shape[1]
    wrong = ((targets < 0) | (targets >= n_classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise EvaluationError(
            f"split {split!r}, example {first}: the label is {int(targets[first])}, and the model "
            f"has {n_classes} outputs, for labels 0 to {n_classes - 1}"
            + (f"; {len(wrong)} examples are like that" if len(wrong) > 1 else "")
        )


def open_journal(folder: StrPath | None) -> Journal:
    """The journal of a cache folder; in memory when None."""
    return Journal(None if folder is None else Path(folder) / "journal.sqlite")
