"""Scores of checkpoints over a task: forward passes of one model into which weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import EvaluationError, StockpotError
from stockpot.evaluate.batchnorm import (
    BatchNormPolicy,
    CalibrationSet,
    apply_statistics,
    calibration_set,
    has_batchnorm,
    is_statistic,
    policy_named,
    statistics_names,
)
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Counters, Evaluator, open_journal
from stockpot.evaluate.journal import Journal, Key
from stockpot.evaluate.runner import ModelRunner, Precision, build_model, on_examples
from stockpot.evaluate.source_hash import source_hash
from stockpot.evaluate.splits import (
    dataset_fingerprint,
    part_of,
    split_fingerprint,
    with_splits,
)
from stockpot.evaluate.task import Task
from stockpot.mixing.mixture import Mixture

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.cluster_pool import Cluster, ClusterPool
    from stockpot.evaluate.pool import WorkerPool
    from stockpot.formats.base import Checkpoint


@dataclass
class _Loaded:
    """The model and its workers: made on first use, shared by views of one evaluator."""

    runner: ModelRunner | None = None
    pool: WorkerPool | ClusterPool | None = None

    @property
    def n_workers(self) -> int:
        """How many divide a forward pass."""
        return 1 if self.pool is None else self.pool.n_workers


class TaskEvaluator(Evaluator):
    """Scores checkpoints on the splits of a task, example by example.

    It has state: one model into which weights are loaded, the journal, and counters. Pass
    `cache=None` to keep the journal in memory only. State dicts and modules become checkpoints by
    `stockpot.from_state_dict`.

    BatchNorm networks are all scored under one policy, single models as well as mixtures, so that
    a difference between two is not one of treatment. A mixture that brings statistics of its own
    keeps them.

    Args:
        task: architecture, splits, metric.
        cache: folder of the journal; None forgets everything at the end.
        device: `"auto"`, `"accelerate"`, or a torch device.
        precision: `"fp32"`, `"bf16"`, `"fp16"`.
        batch_size: None means the task's.
        seed: of the calibration pass and of bootstrap intervals.
        batchnorm: `"averaged"` (a single model keeps its own statistics), `"recalibrated"` on the
            training set with its training transform, or `"clean"`, without augmentation; None
            recalibrates where the task has data for it, and else averages (`notes` says so).
        n_workers: processes that divide the examples of a forward pass, on the CPU; no result
            depends on it.
        cluster: a Ray cluster whose workers divide them instead.
        progress: called with examples done.
    """

    has_outputs = True

    def __init__(
        self,
        task: Task,
        *,
        cache: StrPath | Journal | None = None,
        device: str = "auto",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        seed: int = 0,
        batchnorm: str | None = None,
        n_workers: int = 1,
        cluster: Cluster | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if n_workers < 1:
            raise EvaluationError(f"n_workers is {n_workers}, expected at least 1")
        journal = cache if isinstance(cache, Journal) else open_journal(cache)
        super().__init__(task, journal=journal, seed=seed, progress=progress)
        self._asked = None if batchnorm is None else policy_named(batchnorm)
        self._settled: BatchNormPolicy | None = None
        self.precision: Precision = precision
        self._pool_options = n_workers, cluster
        self._options: dict[str, Any] = {"device": device, "batch_size": batch_size}
        self._loaded = _Loaded()
        self._has_batchnorm: bool | None = None
        self._fingerprints: dict[str, str] = {}
        self._targets: dict[str, torch.Tensor] = {}

    @property
    def runner(self) -> ModelRunner:
        """The model into which weights are loaded; built on first use."""
        from stockpot.tensors._devices_torch import makes_up_bfloat16

        loaded = self._loaded
        if loaded.runner is None:
            loaded.runner = ModelRunner(
                self.task, precision=self.precision, seed=self.seed, **self._options
            )
            loaded.pool = self._made_pool(loaded.runner)
            if self.precision == "bf16" and makes_up_bfloat16(loaded.runner.device):
                self._note(
                    "this processor has no instructions for bfloat16, which makes it far slower "
                    "than float32 (--precision fp32)"
                )
        return loaded.runner

    def _made_pool(self, runner: ModelRunner) -> WorkerPool | ClusterPool | None:
        n_workers, cluster = self._pool_options
        if cluster is not None:
            from stockpot.evaluate.cluster_pool import ClusterPool

            return ClusterPool(runner, cluster)
        if n_workers > 1:
            from stockpot.evaluate.pool import WorkerPool

            return WorkerPool(runner, n_workers)
        return None

    def close(self) -> None:
        """End the workers and close the journal; both start again when needed."""
        if self._loaded.pool is not None:
            self._loaded.pool.close()
        self._loaded.runner = self._loaded.pool = None
        super().close()

    def key(self, source: Checkpoint, split: str) -> Key:
        """The journal key of `source` on `split`."""
        return Key(
            model=source.key,
            split=self.fingerprint(split),
            # Where outputs break ties, they have to be those of the batches of a plain loop.
            metric=" then ".join(metric.name for metric in (self.metric, *self.then)),
            version=self.task.version,
            batchnorm=self._statistics_key(source),
            precision=self.precision,
        )

    def fingerprint(self, split: str) -> str:
        """The fingerprint of a split; hashed once."""
        if split not in self._fingerprints:
            given = self._split(split)
            try:
                found = split_fingerprint(given)
            except StockpotError:
                raise
            except Exception as error:  # whatever the data set's code raises
                examples = range(len(given.dataset))  # type: ignore[arg-type]  # it is map-style
                where = on_examples(self.task, given.dataset, examples, error)
                raise EvaluationError(f"{where}: {one_line(error)}") from error
            if found.note is not None:
                self.notes.append(f"{split}: {found.note}")
            self._fingerprints[split] = found.value
        return self._fingerprints[split]

    def targets(self, split: str) -> torch.Tensor:
        """Targets (n,) of a split, in order; read once."""
        import torch

        if split not in self._targets:
            batches = self.task.batches(self._split(split).dataset)
            try:
                found = torch.cat([self.task.targets(batch) for batch in batches])
            except StockpotError:
                raise
            except Exception as error:  # whatever the task's code raises
                raise EvaluationError(
                    f"split {split!r}: its targets cannot be read: {one_line(error)}"
                ) from error
            self._targets[split] = found.cpu()
        return self._targets[split]

    def known(
        self, source: Checkpoint, split: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
        """Indices and outputs that the journal holds of `source` on `split`."""
        found = self.journal.outputs(self.key(source, split))
        return None if found is None else (found[0], found[1].astype(np.float32, copy=False))

    def run(
        self, source: Checkpoint, split: str, indices: Sequence[int], *, unit: int = 1
    ) -> npt.NDArray[np.float32]:
        """Outputs of the examples at `indices` by forward passes, which are journalled.

        Workers divide them into multiples of `unit` examples.
        """
        self.load(source)
        pool = self._loaded.pool
        if pool is None:
            outputs = self.runner.outputs(self._split(split).dataset, indices)
        else:
            outputs = pool.outputs(split, indices, unit=unit)
        self.counters.examples += len(indices)
        self.journal.append(
            self.key(source, split), np.asarray(indices, np.int64), outputs, label=source.path
        )
        return outputs

    def load(self, source: Checkpoint) -> None:
        """Put `source` into the model, with the statistics that it is to be scored with."""
        wanted = (source.key, self._statistics_key(source))
        runner, pool = self.runner, self._loaded.pool
        if runner.loaded_key == wanted:
            return
        runner.load(source)
        if pool is not None:
            pool.send_parameters()
        if self.recalibrates(source):
            order = self._calibration_order()
            statistics = runner.statistics if pool is None else pool.statistics
            apply_statistics(runner.model, statistics(order, self.batchnorm))
            self.counters.calibration += sum(map(len, order))
            self._round_statistics(source)
        if pool is not None:
            pool.send_buffers()
        runner.loaded_key = wanted

    def _round_statistics(self, source: Checkpoint) -> None:
        """Score what would be saved: new statistics have the dtype of the old ones on disk."""
        state = self.runner.model.state_dict()
        for name in set(statistics_names(self.runner.model)) & set(source):
            stored = source.read(name).dtype
            state[name].copy_(state[name].to(stored))

    def predictions(self, source: Checkpoint, split: str) -> Predictions:
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
        step = size * self._loaded.n_workers
        for start in range(0, len(missing), step):
            self.run(source, split, missing[start : start + step], unit=size)
            self.progress(min(start + step, len(missing)), len(missing), f"examples of {split}")
        found = self.known(source, split)
        if found is None or len(found[0]) != n:
            raise EvaluationError(f"split {split!r} holds no examples; nothing can be scored on it")
        return self.from_outputs(found[1], split)

    def statistics(self, source: Checkpoint) -> dict[str, torch.Tensor]:
        """The BatchNorm statistics with which `source` is scored, by state-dict name."""
        self.load(source)
        state = self.runner.model.state_dict()
        return {name: state[name].cpu().clone() for name in statistics_names(self.runner.model)}

    @property
    def batchnorm(self) -> BatchNormPolicy:
        """The policy under which models are scored; see the class."""
        decided = self._settled if self._asked is None else self._asked
        if decided is not None:
            return decided
        return "averaged" if calibration_set(self.task, "recalibrated") is None else "recalibrated"

    def with_batchnorm(self, policy: BatchNormPolicy) -> Self:
        """The same evaluator under another BatchNorm policy, with counters of its own."""
        other = copy(self)
        other._asked, other.counters = policy, Counters()
        return other

    def with_default_batchnorm(self, policy: BatchNormPolicy | None) -> Self:
        """See `Evaluator.with_default_batchnorm`."""
        if self._asked is not None or self._settled is not None:
            return self
        other = copy(self)
        other._settled = self.batchnorm if policy is None else policy
        return other

    def over(self, task: Task) -> TaskEvaluator:
        """An evaluator of the same model on the splits of `task`, a view of this one's.

        The journal, the model and the counters are shared; workers are not, because they
        know the splits of their own task only.
        """
        other = copy(self)
        other.task, other._loaded, other._pool_options = task, _Loaded(self.runner), (1, None)
        other._fingerprints, other._targets = {}, {}
        return other

    def on_part(self, split: str, indices: Sequence[int]) -> TaskEvaluator:
        """A view whose split of this name holds only the examples at `indices`; see `over`."""
        part = part_of(self._split(split), indices, fingerprint=self.fingerprint(split))
        return self.over(with_splits(self.task, {**self.task.splits, split: part}))

    def calibration_size(self) -> int:
        """Examples of one calibration pass; 0 where there is none."""
        if self.batchnorm == "averaged" or not self._keeps_statistics():
            return 0
        return sum(map(len, self._calibration_order()))

    def batchnorm_policy(self, source: Checkpoint) -> BatchNormPolicy | None:
        """See `Evaluator.batchnorm_policy`."""
        brings = isinstance(source, Mixture) and _brings_statistics(source)
        return None if brings or not self._keeps_statistics() else self.batchnorm

    def _calibration_order(self) -> list[list[int]]:
        return self._calibration().order(self.task.batch_size, seed=self.seed)

    def _calibration(self) -> CalibrationSet:
        data = calibration_set(self.task, self.batchnorm)
        if data is None:
            raise EvaluationError(
                f"batchnorm is {self.batchnorm}, and the task has no training set to recompute "
                "statistics from: give it one, or use averaged statistics (--batchnorm averaged)"
            )
        return data

    def _keeps_statistics(self) -> bool:
        """Whether the task's network has BatchNorm layers with running statistics."""
        if self._has_batchnorm is None:
            self._has_batchnorm = has_batchnorm(build_model(self.task))
        return self._has_batchnorm

    def _statistics_key(self, source: Checkpoint) -> str:
        """What the statistics depend on that `source` is scored with; empty if they are its own."""
        policy = self.batchnorm_policy(source)
        if policy is None:
            return ""
        if policy == "averaged":
            if self._asked is None and self.task.calibration_set is None:
                self._note("BatchNorm statistics are averaged: the task has no calibration_set")
            return "averaged" if isinstance(source, Mixture) and source.n_mixed > 1 else ""
        slot = f"\0calibration {self.batchnorm}"
        if slot not in self._fingerprints:
            data = self._calibration()
            key = f"recalibrated {dataset_fingerprint(data.dataset).value} seed {self.seed}"
            key = f"{key} batch {self.task.batch_size}"
            augment = "" if data.augment is None else f" augment {source_hash(data.augment)}"
            self._fingerprints[slot] = f"{key}{augment}"
        return self._fingerprints[slot]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _brings_statistics(source: Mixture) -> bool:
    """Whether BatchNorm statistics are among what `source` overrides: then they are kept."""
    return source.overrides is not None and any(map(is_statistic, source.overrides))


def require_outputs(evaluator: Evaluator, who: str) -> TaskEvaluator:
    """`evaluator`, if it knows outputs by example.

    Raises:
        EvaluationError: it only knows numbers.
    """
    if not isinstance(evaluator, TaskEvaluator):
        raise EvaluationError(
            f"{who} needs outputs by example, which a program or a function does not give; score "
            "with a Task (task=…, --task)"
        )
    return evaluator
