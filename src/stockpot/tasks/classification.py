"""The usual task: one label per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stockpot.evaluate.batchnorm import Augment
from stockpot.evaluate.task import Metric, Split
from stockpot.tasks.base import TaskBase, cross_entropy, labels, logits

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class ClassificationTask(TaskBase):
    """Architecture, splits, how to predict, and the metric.

    `build` makes the architecture only; weights come from checkpoints. With `train_set` ingredients
    can be fine-tuned, and BatchNorm statistics recalibrated. `version` keys the journal: by default
    a hash of the source of `build`,
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
        calibration_set: examples without augmentation, for the BatchNorm policy `clean`; None means
            `train_set`.
        augment: `(batch, generator) -> batch`, the transform of training; BatchNorm statistics are
            recalibrated with it.
        loss: `(outputs, targets) -> mean loss`, differentiable.
        collate: list of examples (or what the data set's `__getitems__` gives) → batch; None means
            PyTorch's `default_collate`.
        version: changes whenever build, predict or metric do.

    Raises:
        TaskError: there is no split, or batch_size is below 1.
        EvaluationError: the metric is not known.
    """

    build: Callable[[], nn.Module]
    splits: Mapping[str, Split]
    batch_size: int = 256
    metric: Metric = "accuracy"  # type: ignore[assignment]  # a name becomes a Metric below
    predict: Callable[[nn.Module, Any], torch.Tensor] = field(default=logits, kw_only=True)
    train_set: Dataset[Any] | None = field(default=None, kw_only=True)
    calibration_set: Dataset[Any] | None = field(default=None, kw_only=True)
    augment: Augment | None = field(default=None, kw_only=True)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=cross_entropy, kw_only=True
    )
    collate: Callable[[list[Any]], Any] | None = field(default=None, kw_only=True)
    version: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        own = self.calibration_set is not None
        self._complete(calibration_set=self.calibration_set if own else self.train_set)
        self._set_version(self.build, self.predict, self.collate)

    def targets(self, batch: Any) -> torch.Tensor:
        """Class indices `(N,)` of one batch."""
        return labels(batch)
