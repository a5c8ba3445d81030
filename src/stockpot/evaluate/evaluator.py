"""Scores with their uncertainty, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import apply_statistics, has_batchnorm, statistics_names
from stockpot.evaluate.compare import SHIFT_AVERAGE, Predictions, shift_average, shifts_among
from stockpot.evaluate.journal import Journal, Key
from stockpot.evaluate.pool import WorkerPool
from stockpot.evaluate.runner import LivingModel, Precision
from stockpot.evaluate.sources import brings_statistics, content_key, n_mixed
from stockpot.evaluate.splits import dataset_fingerprint, split_fingerprint
from stockpot.evaluate.stats import bootstrap_interval, bootstrap_mean, clopper_pearson
from stockpot.evaluate.swap import Weights, read_weights, weight_names
from stockpot.evaluate.task import Metric, Score, Split, Task

if TYPE_CHECKING:
    import torch


@dataclass
class Counters:
    """Forward passes that were really made, in examples; what the journal knew is not in them."""

    examples: int = 0
    calibration: int = 0


class Evaluator:
    """Scores weights on the splits of a task, and never the same content twice.

    It has state: one living model into which weights are swapped, the journal, and counters. Pass
    `cache=None` to keep the journal in memory only.

    A soup of BatchNorm networks is scored with recalibrated statistics when the task has a
    calibration set, and with averaged ones otherwise (`notes` says so); a single model is always
    scored as it is.

    Args:
        task: architecture, splits, metric.
        cache: folder of the journal; None forgets everything at the end.
        device: `"auto"`, `"accelerate"`, or a torch device.
        precision: `"fp32"`, `"bf16"`, `"fp16"`.
        batch_size: None means the task's.
        seed: of the calibration order and of bootstrap intervals.
        batchnorm: `"recalibrate"` or `"average"`, for mixtures of several models.
        n_workers: processes that divide the examples of a forward pass, on the CPU; no result
            depends on it.
        progress: called with examples done.
    """

    has_outputs = True
    """Whether predictions are outputs by example, which can be averaged and compared."""

    n_ahead = 0
    """How many candidates are worth giving to `score_ahead` at once: none, as workers divide the
    examples of one candidate, which was measured to be the faster way."""

    def __init__(
        self,
        task: Task,
        *,
        cache: StrPath | Journal | None = None,
        device: str = "auto",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        seed: int = 0,
        batchnorm: str = "recalibrate",
        n_workers: int = 1,
        progress: Progress = no_progress,
    ) -> None:
        if batchnorm not in ("recalibrate", "average"):
            raise EvaluationError(f"batchnorm is {batchnorm!r}, expected recalibrate or average")
        self.task = task
        self.journal = cache if isinstance(cache, Journal) else open_journal(cache)
        self.seed = seed
        self.batchnorm = batchnorm
        self.precision: Precision = precision
        self.counters = Counters()
        self.progress = progress
        self._options: dict[str, Any] = {"device": device, "batch_size": batch_size}
        if n_workers < 1:
            raise EvaluationError(f"n_workers is {n_workers}, expected at least 1")
        self.n_workers = n_workers
        self._living: LivingModel | None = None
        self._pool: WorkerPool | None = None
        self._has_batchnorm: bool | None = None
        self._fingerprints: dict[str, str] = {}
        self._targets: dict[str, torch.Tensor] = {}
        self.notes: list[str] = []

    @property
    def metric(self) -> Metric:
        """The task's metric."""
        return self.task.metric

    @property
    def living(self) -> LivingModel:
        """The model into which weights are swapped; built on first use."""
        if self._living is None:
            self._living = LivingModel(
                self.task, precision=self.precision, seed=self.seed, **self._options
            )
            self._has_batchnorm = self._living.has_batchnorm
            if self.n_workers > 1:
                self._pool = WorkerPool(self._living, self.n_workers)
        return self._living

    def close(self) -> None:
        """End the workers and close the journal; both start again when needed."""
        if self._pool is not None:
            self._pool.close()
        self._pool, self._living = None, None
        self.journal.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def n_examples(self, split: str) -> int:
        """Examples of a split."""
        return len(self._split(split).dataset)  # type: ignore[arg-type]

    def key(self, source: Weights, split: str) -> Key:
        """The journal key of `source` on `split`."""
        return Key(
            model=content_key(source),
            split=self.fingerprint(split),
            metric=self.metric.name,
            version=self.task.version,
            batchnorm=self._batchnorm_policy(source),
            precision=self.precision,
        )

    def fingerprint(self, split: str) -> str:
        """The fingerprint of a split; hashed once."""
        if split not in self._fingerprints:
            found = split_fingerprint(self._split(split))
            if found.note is not None:
                self.notes.append(f"{split}: {found.note}")
            self._fingerprints[split] = found.value
        return self._fingerprints[split]

    def targets(self, split: str) -> torch.Tensor:
        """Targets (n,) of a split, in order; read once."""
        import torch

        if split not in self._targets:
            batches = self.task.batches(self._split(split).dataset)
            self._targets[split] = torch.cat([self.task.targets(batch) for batch in batches]).cpu()
        return self._targets[split]

    def known(
        self, source: Weights, split: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
        """Indices and outputs that the journal holds of `source` on `split`."""
        found = self.journal.outputs(self.key(source, split))
        return None if found is None else (found[0], found[1].astype(np.float32, copy=False))

    def run(
        self, source: Weights, split: str, indices: Sequence[int], *, unit: int = 1
    ) -> npt.NDArray[np.float32]:
        """Outputs of the examples at `indices` by forward passes, which are journalled.

        Workers divide them into multiples of `unit` examples.
        """
        self.load(source)
        if self._pool is None:
            outputs = self.living.outputs(self._split(split).dataset, indices)
        else:
            outputs = self._pool.outputs(split, indices, unit=unit)
        self.counters.examples += len(indices)
        label = str(getattr(source, "path", "a mixture"))
        self.journal.append(
            self.key(source, split), np.asarray(indices, np.int64), outputs, label=label
        )
        return outputs

    def load(self, source: Weights) -> None:
        """Put `source` into the living model, with the statistics that it is to be scored with."""
        policy = self._batchnorm_policy(source)
        wanted = (content_key(source), policy.startswith("recalibrated"))
        if self.living.holding == wanted:
            return
        self.living.load(source)
        if wanted[1]:
            statistics = self.living.statistics if self._pool is None else self._pool.statistics
            order = self.living.calibration_batches()
            apply_statistics(self.living.model, statistics(order))
            self.counters.calibration += sum(map(len, order))
            self._round_statistics(source)
        if self._pool is not None:
            self._pool.send_buffers()
        self.living.holding = wanted

    def _round_statistics(self, source: Weights) -> None:
        """Score what would be saved: new statistics have the dtype of the old ones on disk."""
        state = self.living.model.state_dict()
        for name in set(statistics_names(self.living.model)) & set(weight_names(source)):
            stored = read_weights(source, name).dtype
            state[name].copy_(state[name].to(stored))

    def predictions(self, source: Weights, split: str) -> Predictions:
        """Outputs on every example, from the journal as far as it knows them.

        What is missing is run in the batches of a plain loop over the split, so that results do not
        depend on what an earlier, interrupted run had done.
        """
        n = self.n_examples(split)
        known = self.known(source, split)
        have = np.zeros(n, bool)
        if known is not None:
            have[known[0]] = True
        size = self.task.batch_size
        missing = [
            i
            for start in range(0, n, size)
            if not have[start : start + size].all()
            for i in range(start, min(start + size, n))
        ]
        step = size * self.n_workers
        for start in range(0, len(missing), step):
            self.run(source, split, missing[start : start + step], unit=size)
            self.progress(min(start + step, len(missing)), len(missing), f"examples of {split}")
        found = self.known(source, split)
        if found is None or len(found[0]) != n:
            raise EvaluationError(f"split {split!r} holds no examples; nothing can be scored on it")
        return self.judged(found[1], split)

    def score_ahead(self, sources: Sequence[Weights], split: str) -> None:
        """Score side by side what may be asked for next; it is then found in the journal.

        Of candidates that are tried against one soup most are rejected, so trying the next few at
        once wastes little, and the answer is that of one after the other.
        """

    def judged(self, outputs: npt.NDArray[np.float32], split: str) -> Predictions:
        """`outputs` of all examples of a split, with the metric of each."""
        import torch

        targets = self.targets(split)
        per_example = self.metric.per_example
        if per_example is None:
            return Predictions(outputs, targets, None)
        values = per_example(torch.from_numpy(np.array(outputs)), targets)
        return Predictions(outputs, targets, values.double().numpy())

    def score(self, source: Weights, split: str) -> Score:
        """The metric of `source` on `split` with a 95 % interval.

        Raises:
            EvaluationError: the weights do not fit, a score is not a number, or the split is empty.
        """
        return self.score_of(
            self.predictions(source, split), split, name=str(getattr(source, "path", "the mixture"))
        )

    def score_of(
        self,
        predictions: Predictions,
        split: str,
        *,
        name: str = "the model",
        interval: bool = True,
    ) -> Score:
        """The score of outputs that are already there; its interval can be left out."""
        import torch

        outputs = torch.from_numpy(np.array(predictions.outputs))
        value = self.metric.compute(outputs, predictions.targets)
        self.require_numbers(np.array([value]), split, name=name)
        low, high = self._interval(predictions, outputs) if interval else (None, None)
        return Score(
            value=value, n=len(predictions.targets), low=low, high=high, metric=self.metric.name,
            split=split, higher_is_better=self.metric.higher_is_better,
        )  # fmt: skip

    def require_numbers(
        self,
        values: npt.NDArray[np.float64],
        split: str,
        *,
        candidate: Weights | None = None,
        name: str = "the model",
    ) -> None:
        """Refuse values that are not finite.

        Raises:
            EvaluationError: names the model, the split and the metric.
        """
        if bool(np.isfinite(values).all()):
            return
        if candidate is not None:
            name = str(getattr(candidate, "path", "the mixture"))
        worst = values[~np.isfinite(values)][0]
        raise EvaluationError(
            f"{self.metric.name} of {name} on {split} is {worst}; its weights or the metric "
            "are at fault. Leave this ingredient out, or choose a metric that is defined here."
        )

    def scores(self, source: Weights, splits: Iterable[str] | None = None) -> dict[str, Score]:
        """Scores on `splits` (all when None), and their `shift_average` when there are shifts."""
        names = list(self.task.splits if splits is None else splits)
        found = {name: self.predictions(source, name) for name in names}
        return self.scores_of(found, name=str(getattr(source, "path", "the mixture")))

    def scores_of(
        self, predictions: Mapping[str, Predictions], *, name: str = "the model"
    ) -> dict[str, Score]:
        """Scores of outputs that are already there, by split, with the average over shifts."""
        scores = {s: self.score_of(p, s, name=name) for s, p in predictions.items()}
        shifts = shifts_among(predictions, self.task.splits)
        if shifts:
            scores[SHIFT_AVERAGE] = self._shift_average({s: predictions[s] for s in shifts}, scores)
        return scores

    def statistics(self, source: Weights) -> dict[str, torch.Tensor]:
        """The BatchNorm statistics with which `source` is scored, by state-dict name."""
        self.load(source)
        state = self.living.model.state_dict()
        return {name: state[name].cpu().clone() for name in statistics_names(self.living.model)}

    def averaging(self) -> Evaluator:
        """The same evaluator, with averaged BatchNorm statistics: what recalibration replaced."""
        other = copy(self)
        other.batchnorm, other.counters = "average", Counters()
        return other

    def with_progress(self, progress: Progress) -> Evaluator:
        """The same evaluator, a view of this one that calls `progress` in place of its own."""
        _ = self.living  # one model for both
        other = copy(self)
        other.progress = progress
        return other

    def over(self, task: Task) -> Evaluator:
        """An evaluator of the same model on the splits of `task`, a view of this one's.

        The journal, the living model and the counters are shared; workers are not, because they
        know the splits of their own task only.
        """
        living = self.living
        other = copy(self)
        other.task, other._living, other._pool, other.n_workers = task, living, None, 1
        other._fingerprints, other._targets = {}, {}
        return other

    def calibration_size(self) -> int:
        """Examples of one calibration pass; 0 where there is none."""
        if self.task.calibration_set is None or not self.living.has_batchnorm:
            return 0
        return sum(map(len, self.living.calibration_batches()))

    def recalibrates(self, source: Weights) -> bool:
        """Whether `source` is scored with BatchNorm statistics of its own calibration pass."""
        return self._batchnorm_policy(source).startswith("recalibrated")

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

    def _interval(
        self, predictions: Predictions, outputs: torch.Tensor
    ) -> tuple[float | None, float | None]:
        values = predictions.per_example
        n = len(predictions.targets)
        if values is None:
            return bootstrap_interval(
                lambda i: self.metric.compute(outputs[i], predictions.targets[i]),
                n, n_resamples=200, seed=self.seed,
            )  # fmt: skip
        if bool(np.isin(values, (0, 1)).all()):
            return clopper_pearson(int(values.sum()), n)
        return bootstrap_mean(values, seed=self.seed)

    def _batchnorm_policy(self, source: Weights) -> str:
        if n_mixed(source) < 2 or brings_statistics(source):
            return ""
        if self._has_batchnorm is None:
            self._has_batchnorm = has_batchnorm(self.task.build())
        if not self._has_batchnorm:
            return ""
        if self.batchnorm == "average":
            return "averaged"
        if self.task.calibration_set is None:
            note = "BatchNorm statistics are averaged: the task has no calibration_set"
            if note not in self.notes:
                self.notes.append(note)
            return "averaged"
        data = self._fingerprints.get("\0calibration")
        if data is None:
            data = dataset_fingerprint(self.task.calibration_set).value
            self._fingerprints["\0calibration"] = data
        return f"recalibrated {data} seed {self.seed} batch {self.task.batch_size}"

    def _split(self, name: str) -> Split:
        try:
            return self.task.splits[name]
        except KeyError:
            known = ", ".join(self.task.splits)
            raise EvaluationError(f"the task has no split {name!r}; it has {known}") from None


def open_journal(folder: StrPath | None) -> Journal:
    """The journal of a cache folder; in memory when None."""
    from pathlib import Path

    return Journal(None if folder is None else Path(folder) / "journal.sqlite")
