"""Tasks that are no classification: regression, ranking, generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stockpot.errors import TaskError
from stockpot.evaluate.batchnorm import Augment
from stockpot.evaluate.metrics import MeanMetric, WholeMetric
from stockpot.evaluate.task import Metric, Split
from stockpot.tasks.base import TaskBase, labels, logits

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset


def _no_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise TaskError("this task has no loss, so nothing can be trained on it: give it loss=…")


@dataclass(frozen=True)
class GeneralTask(TaskBase):
    """Architecture, splits, how to predict, and any metric of outputs against targets.

    Outputs and targets have one row per example; rows of all batches must have one width, so pad
    generated tokens (`generated` does). Outputs are journalled as float32.

    >>> import torch
    >>> x = torch.linspace(0, 1, 5)[:, None]
    >>> data = torch.utils.data.TensorDataset(x, 2 * x)
    >>> task = GeneralTask(
    ...     build=lambda: torch.nn.Linear(1, 1),
    ...     splits={"val": Split(data, role="held-out")},
    ...     metric=mean_squared_error(),
    ... )
    >>> task.metric.compute(x, 2 * x), task.metric.higher_is_better
    (0.375, False)

    Args:
        build: `() -> nn.Module`.
        splits: name → `Split`.
        metric: a `Metric`, such as those of this module, `MeanMetric` or `WholeMetric`.
        predict: `(model, batch) -> outputs (N, …)`; by default what the model returns.
        targets: `batch -> targets (N, …)`; by default its second item, or its `labels`.
        loss: `(outputs, targets) -> mean loss`, differentiable; needed for training only.
        batch_size: examples of one forward pass.
        train_set: map-style data of the same form as the splits.
        calibration_set: examples without augmentation, for the BatchNorm policy `clean`; None means
            `train_set`.
        augment: `(batch, generator) -> batch`, the transform of training; BatchNorm statistics are
            recalibrated with it.
        collate: list of examples → batch; None means PyTorch's `default_collate`.
        version: changes whenever build, predict, targets or metric do; by default a hash of their
            source.

    Raises:
        TaskError: there is no split, or batch_size is below 1.
    """

    build: Callable[[], nn.Module]
    splits: Mapping[str, Split]
    metric: Metric
    predict: Callable[[nn.Module, Any], torch.Tensor] = field(default=logits, kw_only=True)
    targets: Callable[[Any], torch.Tensor] = field(default=labels, kw_only=True)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=_no_loss, kw_only=True
    )
    batch_size: int = field(default=256, kw_only=True)
    train_set: Dataset[Any] | None = field(default=None, kw_only=True)
    calibration_set: Dataset[Any] | None = field(default=None, kw_only=True)
    augment: Augment | None = field(default=None, kw_only=True)
    collate: Callable[[list[Any]], Any] | None = field(default=None, kw_only=True)
    version: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        own = self.calibration_set is not None
        self._complete(calibration_set=self.calibration_set if own else self.train_set)
        if self.train_set is not None and self.loss is _no_loss:
            raise TaskError("a task with a train_set needs a loss: (outputs, targets) -> mean loss")
        self._set_version(self.build, self.predict, self.targets, self.collate)


def mean_squared_error() -> MeanMetric:
    """Mean over examples of the mean squared difference; lower is better.

    Outputs and targets have the same number of values per example.
    """
    return MeanMetric(_squared_errors, "mean-squared-error", higher_is_better=False, low=0.0)


def _squared_errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    difference = outputs.double().flatten(1) - targets.double().reshape(len(outputs), -1)
    return difference.square().mean(1)


def spearman() -> WholeMetric:
    """Spearman's rank correlation of outputs and targets, one value per example: −1 to 1.

    >>> import torch
    >>> round(spearman().compute(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 4.0, 5.0])), 6)
    1.0
    """
    return WholeMetric(_spearman, "spearman")


def _spearman(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(outputs.flatten().numpy(), targets.flatten().numpy()).statistic)


def reciprocal_rank() -> MeanMetric:
    """Mean reciprocal rank: outputs (N, M) score M candidates, targets (N,) say which is right.

    A candidate with the same score as the right one counts as ranked before it.

    >>> import torch
    >>> outputs = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]])
    >>> reciprocal_rank().compute(outputs, torch.tensor([2, 0]))
    0.75
    """
    return MeanMetric(_reciprocal_ranks, "mean-reciprocal-rank", low=0.0, high=1.0)


def _reciprocal_ranks(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    right = outputs.gather(1, targets[:, None].long())
    return 1 / (outputs >= right).sum(1).double()


def exact_match(pad_id: int = 0) -> MeanMetric:
    """Share of examples whose generated tokens are the target's, padding at the end aside.

    Outputs (N, T) and targets (N, T′) hold token ids.
    """
    return MeanMetric(_ExactMatch(pad_id), "exact-match", low=0.0, high=1.0)


@dataclass(frozen=True)
class _ExactMatch:
    pad_id: int

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        width = max(outputs.shape[1], targets.shape[1])
        same = [
            functional.pad(ids.long(), (0, width - ids.shape[1]), value=self.pad_id)
            for ids in (outputs, targets)
        ]
        return (same[0] == same[1]).all(1).double()


def generated(max_new_tokens: int, *, pad_id: int = 0) -> Callable[[nn.Module, Any], torch.Tensor]:
    """A `predict` for transformers models that generate: greedy token ids (N, max_new_tokens).

    Nothing is sampled, so a prediction is a function of the weights. Rows that end early are filled
    with `pad_id`; the first token, with which decoders start, is left out.
    """
    return _Generated(max_new_tokens, pad_id)


@dataclass(frozen=True)
class _Generated:
    max_new_tokens: int
    pad_id: int

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        from torch.nn import functional

        inputs = {name: value for name, value in batch.items() if name != "labels"}
        whole = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
        )
        is_encoder_decoder = bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]
        before = 1 if is_encoder_decoder else inputs["input_ids"].shape[1]
        found: torch.Tensor = whole[:, before:]
        missing = self.max_new_tokens - found.shape[1]
        return functional.pad(found, (0, missing), value=self.pad_id)
