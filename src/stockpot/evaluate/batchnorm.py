"""BatchNorm statistics with which models are scored, under one policy for a whole table.

The averaged weights of several models produce activations whose mean and variance are not the
averages of theirs (Izmailov et al. 2018, arXiv 1803.05407, §3.2), so statistics may be recomputed
from data (cf. torch.optim.swa_utils.update_bn). Recomputing them also changes a single model: like
is compared with like only where all models of a table are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from stockpot.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.utils.data import Dataset

    from stockpot.evaluate.task import Task


BatchNormPolicy = Literal["averaged", "recalibrated", "clean"]
"""`averaged`: running statistics are mixed like weights, and a single model keeps its own.
`recalibrated`: they are recomputed from the training set with its training transform, of every
model. `clean`: the same without augmentation."""

Augment: TypeAlias = "Callable[[Any, torch.Generator], Any]"
"""`(batch, generator) -> batch`: the random transform of training."""

_ALIASES: dict[str, BatchNormPolicy] = {"average": "averaged", "recalibrate": "clean"}

BatchStatistics: TypeAlias = "dict[str, tuple[torch.Tensor, torch.Tensor, int]]"
"""Layer name → (mean, unbiased variance, number of calls) of one batch; float32 `(C,)` each."""


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of a BatchNorm layer."""


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    from torch.nn.modules.batchnorm import _BatchNorm

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return bool(_layers(model))


def statistics_names(model: nn.Module) -> list[str]:
    """State-dict names of all running statistics and their counters."""
    return [
        f"{name}.{buffer}" if name else buffer for name in _layers(model) for buffer in STATISTICS
    ]


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name holds BatchNorm statistics.

    >>> is_statistic("layer1.0.bn1.running_mean"), is_statistic("layer1.0.bn1.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in STATISTICS


def calibration_order(n: int, batch_size: int, *, seed: int = 0) -> list[list[int]]:
    """Indices of the batches of one calibration pass: shuffled, the incomplete last one dropped.

    The order matters: batches of a set that is sorted by class have the variances of one class.
    When there are fewer examples than `batch_size` they make one batch of their own.

    >>> [len(batch) for batch in calibration_order(10, 4)], calibration_order(2, 4, seed=1)
    ([4, 4], [[0, 1]])

    Raises:
        EvaluationError: fewer than two examples, of which no variance can be made.
    """
    import numpy as np

    if n < 2:
        raise EvaluationError(
            f"the calibration set holds {n} examples; BatchNorm statistics need at least two. "
            "Give the task a larger calibration_set."
        )
    size = min(batch_size, n)
    order: list[int] = np.random.default_rng(seed).permutation(n).tolist()
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def batch_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object]
) -> list[BatchStatistics]:
    """The statistics that each batch alone gives, in order.

    While a layer normalises with the statistics of the batch itself, batches do not influence each
    other, so that they can be divided between workers and averaged afterwards by
    `apply_statistics`. Only the BatchNorm layers are in train mode (dropout is off); the model's
    modes and momenta are restored, its running statistics are not.
    """
    import torch

    layers = _layers(model)
    found: list[BatchStatistics] = []
    with _collecting(model, layers), torch.no_grad():
        for batch in batches:
            for layer in layers.values():
                layer.reset_running_stats()
            _forward(model, batch, forward)
            found.append({name: _snapshot(layer) for name, layer in layers.items()})
    return found


def _forward(model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], object]) -> None:
    try:
        forward(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise EvaluationError(
            f"BatchNorm statistics cannot be made of one value per channel ({error}): give the "
            "task a batch_size of at least 2, or use averaged statistics (--batchnorm averaged)"
        ) from error


def _snapshot(layer: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor, int]:
    if layer.running_mean is None or layer.running_var is None:
        raise AssertionError("layers without running statistics were left out")
    n_calls = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    return layer.running_mean.cpu().clone(), layer.running_var.cpu().clone(), n_calls


@contextmanager
def _collecting(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[None]:
    modes = {name: module.training for name, module in model.named_modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    model.eval()
    for layer in layers.values():
        layer.train()
        layer.momentum = None
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
        for name, layer in layers.items():
            layer.momentum = momenta[name]


def apply_statistics(model: nn.Module, batches: Sequence[BatchStatistics]) -> None:
    """Set every layer's running statistics to the mean over `batches`: Σ_b s_b / B.

    Equals PyTorch's cumulative mean (`momentum=None` after a reset), summed in float64 in the order
    given. A layer that no batch reached is left reset: mean 0, variance 1.

    Raises:
        EvaluationError: there are no batches.
    """
    import torch

    if len(batches) == 0:
        raise EvaluationError("BatchNorm recalibration saw no batch; the calibration set is empty")
    for name, layer in _layers(model).items():
        layer.reset_running_stats()
        n_calls = sum(batch[name][2] for batch in batches)
        if n_calls == 0:
            continue
        for buffer, statistics in (
            (layer.running_mean, [(batch[name][0], batch[name][2]) for batch in batches]),
            (layer.running_var, [(batch[name][1], batch[name][2]) for batch in batches]),
        ):
            if buffer is None:
                continue
            total = torch.zeros_like(buffer, dtype=torch.float64, device="cpu")
            for value, n_seen in statistics:
                total += value.double() * n_seen
            buffer.copy_(total / n_calls)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(n_calls)


def policy_named(name: str) -> BatchNormPolicy:
    """The policy of this name, or of the name that it had in 0.1 (`average`, `recalibrate`).

    >>> policy_named("recalibrate")
    'clean'

    Raises:
        EvaluationError: there is none.
    """
    found = _ALIASES.get(name, name)
    for policy in get_args(BatchNormPolicy):
        if policy == found:
            return policy  # type: ignore[no-any-return]  # a member of the Literal
    known = ", ".join(get_args(BatchNormPolicy))
    raise EvaluationError(f"batchnorm is {name!r}, expected one of {known}")


@dataclass(frozen=True)
class CalibrationSet:
    """What one calibration pass reads: a data set, and what is done to its batches, if anything."""

    dataset: Dataset[Any]
    augment: Augment | None = None

    def order(self, batch_size: int, *, seed: int) -> list[list[int]]:
        """Indices of the batches; see `calibration_order`."""
        return calibration_order(len(self.dataset), batch_size, seed=seed)  # type: ignore[arg-type]

    def batches(self, task: Task, order: Iterable[Sequence[int]], *, seed: int) -> Iterator[Any]:
        """The batches of `order`. What is random in them is seeded by the examples they hold.

        So it does not depend on which worker makes a batch; the caller's generator stays as it was.
        """
        import torch

        for indices in order:
            own = seed_of_batch(indices, seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(own)
                found = list(task.batches(self.dataset, indices, batch_size=len(indices)))
            for batch in found:
                if self.augment is None:
                    yield batch
                else:
                    yield self.augment(batch, torch.Generator().manual_seed(own))


def calibration_set(task: Task, policy: BatchNormPolicy) -> CalibrationSet | None:
    """What `policy` recomputes statistics from; None for `averaged`, and without data.

    `recalibrated` takes the training set with the task's own `augment(batch, generator)`, if it has
    one, and falls back on the `calibration_set`; `clean` takes the `calibration_set`.
    """
    if policy == "recalibrated" and task.train_set is not None:
        return CalibrationSet(task.train_set, training_transform(task))
    if policy == "averaged" or task.calibration_set is None:
        return None
    return CalibrationSet(task.calibration_set)


def training_transform(task: Task) -> Augment | None:
    """The task's own `augment(batch, generator) -> batch` of training; None without.

    It is optional, and so no part of the `Task` protocol.
    """
    found: Augment | None = getattr(task, "augment", None)
    return found


def seed_of_batch(indices: Sequence[int], seed: int) -> int:
    """A seed for what is random in the batch of the examples at `indices`."""
    import zlib

    return zlib.crc32(repr([seed, *indices]).encode())


def recalibrate(
    model: nn.Module,
    task: Task,
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
    policy: BatchNormPolicy = "recalibrated",
    seed: int = 0,
    batch_size: int | None = None,
) -> int:
    """Replace the running statistics of `model` by those of one pass over the training set.

    Statistics are reset, then averaged over seeded-shuffled batches, the incomplete last one
    dropped; dropout is off and nothing but BatchNorm is in train mode.

    Returns:
        How many examples went through the model.

    Raises:
        EvaluationError: the task has no data for it, or fewer than two examples.
    """
    data = calibration_set(task, policy)
    if data is None:
        raise EvaluationError(
            "the task has neither calibration_set nor train_set, which BatchNorm recalibration "
            "needs; give one, or use the averaged statistics"
        )
    order = data.order(task.batch_size if batch_size is None else batch_size, seed=seed)
    batches = data.batches(task, order, seed=seed)
    apply_statistics(model, batch_statistics(model, batches, forward or task.predict))
    return sum(len(indices) for indices in order)
