"""What tasks are made of: how they are completed and checked, batches, and the usual parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from stockpot._types import kind_of
from stockpot.errors import TaskError
from stockpot.evaluate.batchnorm import training_transform
from stockpot.evaluate.metrics import metric_by_name
from stockpot.evaluate.source_hash import source_hash
from stockpot.evaluate.task import Metric, Split, Task

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

FROM_FOLDER = {"local_files_only": True, "trust_remote_code": False}
"""What transformers is told of every model folder: ask no network, run no code of the folder.

Left open, it asks on a terminal whether to run that code, and a yes runs it.
"""


class TaskBase:
    """What the tasks of this package share; a subclass is a frozen dataclass that says the rest.

    A subclass has the fields `splits`, `metric`, `batch_size`, and where it has `collate` as well,
    batches are made by it. It calls `_complete` when it is made.
    """

    splits: Mapping[str, Split]
    metric: Metric
    batch_size: int

    def _complete(self, **values: Any) -> None:
        """Check what every task needs, and set the fields that are derived from others.

        Raises:
            TaskError: there is no split, or batch_size is below 1.
            EvaluationError: the metric is not known.
        """
        if len(self.splits) == 0:
            raise TaskError(
                "a task needs at least one split: "
                'splits={"val": stockpot.Split(dataset, role="held-out")}'
            )
        given: Mapping[str, Any] = self.splits
        unnamed = [
            f"split {name!r} is {kind_of(split)}: say what it is for with "
            f'Split({name}, role="held-out"), "test" or "shift"'
            for name, split in given.items()
            if not isinstance(split, Split)
        ]
        build = getattr(self, "build", None)
        made = not isinstance(build, type) and callable(getattr(build, "state_dict", None))
        if made:  # a module is callable as well
            unnamed.append(
                f"build is {kind_of(build)} that exists already; give a function that "
                "makes one: build=lambda: …"
            )
        elif not callable(build):
            unnamed.append(f"build is {kind_of(build)}, expected a function that makes one")
        if unnamed:
            raise TaskError("\n".join(unnamed), unnamed)
        if self.batch_size < 1:
            raise TaskError(f"batch_size is {self.batch_size}, expected at least 1")
        values.setdefault("splits", self.splits)
        values["splits"] = dict(values["splits"])
        values["metric"] = metric_by_name(self.metric)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _set_version(self, *code: Any) -> None:
        """Unless one is given, a version that changes with the source of `code` and the metric."""
        if getattr(self, "version", "") == "":
            augment = training_transform(cast("Task", self))
            # Only where there is one, so that journals of tasks without stay readable.
            code = code if augment is None else (*code, augment)
            object.__setattr__(self, "version", source_hash(*code, self.metric))

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """Collated batches of the examples at `indices` (all, in order, when None)."""
        size = self.batch_size if batch_size is None else batch_size
        return batched(dataset, indices, size=size, collate=getattr(self, "collate", None))


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
