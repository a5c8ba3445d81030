"""The usual task: one label per example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stockpot.errors import EvaluationError
from stockpot.evaluate.metrics import metric_by_name
from stockpot.evaluate.source import source_hash
from stockpot.evaluate.task import Metric, Split

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset


def logits(model: nn.Module, batch: Any) -> torch.Tensor:
    """`model(x)` of an `(x, y)` batch, or `model(**batch)` without labels; `.logits` if it has one.

    The default of `ClassificationTask.predict`.
    """
    if isinstance(batch, Mapping):
        found = model(**{key: value for key, value in batch.items() if key != "labels"})
    else:
        found = model(batch[0])
    output: torch.Tensor = getattr(found, "logits", found)
    return output


def labels(batch: Any) -> torch.Tensor:
    """The second of an `(x, y)` batch, or its `labels`."""
    found: torch.Tensor = batch["labels"] if isinstance(batch, Mapping) else batch[1]
    return found


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; the default of `ClassificationTask.loss`."""
    from torch.nn import functional

    return functional.cross_entropy(outputs, targets)


def batched(
    dataset: Dataset[Any],
    indices: Iterable[int] | None,
    *,
    size: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches of `size` of the examples at `indices` (all, in order, when None).

    As in PyTorch's DataLoader, a data set's own `__getitems__` fetches the examples of a batch at
    once; with a `collate` that leaves its result alone it may return the whole batch.
    """
    import torch
    from torch.utils.data import TensorDataset, default_collate

    order: Sequence[int] = (
        range(len(dataset)) if indices is None else list(indices)  # type: ignore[arg-type]
    )
    join = default_collate if collate is None else collate
    fetch_many = getattr(dataset, "__getitems__", None)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        if type(dataset) is TensorDataset and collate is None:
            yield [tensor[torch.as_tensor(part)] for tensor in dataset.tensors]
        elif fetch_many is not None:
            yield join(fetch_many(list(part)))
        else:
            yield join([dataset[i] for i in part])


@dataclass(frozen=True)
class ClassificationTask:
    """Architecture, splits, how to predict, and the metric.

    `build` makes the architecture only; weights come from checkpoints. With `train_set` ingredients
    can be fine-tuned; `calibration_set`, by default the training set, serves BatchNorm and should
    carry no augmentation. `version` keys the journal: by default a hash of the source of `build`,
    `predict` and the metric; give one when they depend on data that the source does not show.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.eye(2), torch.tensor([0, 1]))
        >>> task = ClassificationTask(
        ...     build=lambda: torch.nn.Linear(2, 2),
        ...     splits={"val": Split(data, role="held-out"), "test": Split(data, role="test")},
        ... )
        >>> task.metric.name, task.splits["test"].role.value
        ('accuracy', 'test')

    Args:
        build: `() -> nn.Module`.
        splits: name → `Split`.
        batch_size: examples of one forward pass.
        metric: a name (see `metric_by_name`) or a `Metric`.
        predict: `(model, batch) -> logits (N, C)`.
        train_set: map-style data of the same form as the splits.
        calibration_set: examples for BatchNorm statistics; None means `train_set`.
        loss: `(outputs, targets) -> mean loss`, differentiable.
        collate: list of examples (or what the data set's `__getitems__` gives) → batch; None means
            PyTorch's `default_collate`.
        version: changes whenever build, predict or metric do.

    Raises:
        EvaluationError: there is no split, or the metric is not known.
    """

    build: Callable[[], nn.Module]
    splits: Mapping[str, Split]
    batch_size: int = 256
    metric: Metric = "accuracy"  # type: ignore[assignment]  # a name becomes a Metric below
    predict: Callable[[nn.Module, Any], torch.Tensor] = field(default=logits, kw_only=True)
    train_set: Dataset[Any] | None = field(default=None, kw_only=True)
    calibration_set: Dataset[Any] | None = field(default=None, kw_only=True)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=cross_entropy, kw_only=True
    )
    collate: Callable[[list[Any]], Any] | None = field(default=None, kw_only=True)
    version: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if len(self.splits) == 0:
            raise EvaluationError(
                "a task needs at least one split: "
                'splits={"val": stockpot.Split(dataset, role="held-out")}'
            )
        if self.batch_size < 1:
            raise EvaluationError(f"batch_size is {self.batch_size}, expected at least 1")
        values = {
            "splits": dict(self.splits),
            "metric": metric_by_name(self.metric),
        }
        if self.calibration_set is None:
            values["calibration_set"] = self.train_set
        if self.version == "":
            code = (self.build, self.predict, self.collate, values["metric"])
            values["version"] = source_hash(*code)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """Collated batches of the examples at `indices` (all, in order, when None)."""
        size = self.batch_size if batch_size is None else batch_size
        return batched(dataset, indices, size=size, collate=self.collate)

    def targets(self, batch: Any) -> torch.Tensor:
        """Class indices `(N,)` of one batch."""
        return labels(batch)
