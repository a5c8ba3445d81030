"""Measures of a sparse model: parameters, theoretical FLOPs, calibration, its worst class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot._types import JSON
from stockpot.analysis.calibration import (
    expected_calibration_error,
    top_confidence,
)
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.task import Task, are_class_logits
from stockpot.formats.base import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class SparseCost:
    """Size and theoretical cost of a sparse model.

    Attributes:
        n_parameters: weights of the model, shared ones once.
        n_nonzero: those that are not zero.
        dense_flops: floating-point operations of one forward pass, 2 for each multiplication and
            addition, as torch counts them.
        flops: the same with each layer's count times the share of its weights that is not zero.
    """

    n_parameters: int
    n_nonzero: int
    dense_flops: int
    flops: float

    @property
    def speed_up(self) -> float:
        """Theoretical, dense over sparse: what a machine that skips every zero would gain.

        Real kernels for unstructured sparsity need more than 90 % of it to gain anything.
        """
        return self.dense_flops / self.flops if self.flops else float("inf")

    def to_json(self) -> dict[str, JSON]:
        """Operations of one example, and how many times fewer they are; null for infinitely."""
        speed_up = self.speed_up if self.flops else None
        return {"dense_flops": self.dense_flops, "flops": self.flops, "speed_up": speed_up}


def sparse_cost(model: nn.Module, *inputs: Any) -> SparseCost:
    """Count the weights and the theoretical operations of `model` in a forward pass on `inputs`.

    Operations of layers with one weight (convolutions, linear layers) are scaled with its density;
    all others, such as the products of attention, count in full. Nothing is trained or changed.

    Args:
        model: on the device of the inputs.
        inputs: of `model.forward`; divide by the size of the batch for operations an example.

    >>> import torch
    >>> layer = torch.nn.Linear(8, 4, bias=False)
    >>> _ = layer.weight.data[:, 2:].zero_()
    >>> cost = sparse_cost(layer, torch.zeros(1, 8))
    >>> cost.n_parameters, cost.n_nonzero, cost.dense_flops, cost.flops, cost.speed_up
    (32, 8, 64, 16.0, 4.0)
    """
    return _counted(model, lambda: model(*inputs))


def task_cost(task: Task, checkpoint: Checkpoint) -> SparseCost:
    """The cost of predicting one example of the task's first split with these weights."""
    model = task.build()
    checkpoint.load_into(model)
    dataset = next(iter(task.splits.values())).dataset
    batch = next(iter(task.batches(dataset, [0], batch_size=1)))
    return _counted(model, lambda: task.predict(model, batch))


def _counted(model: nn.Module, forward: Callable[[], Any]) -> SparseCost:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward()
    finally:
        model.train(training)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = int(counter.get_total_flops())
    saved = 0.0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and not any(True for _ in module.children()):
            # torch names modules from the class of the whole; the whole itself by its class alone.
            key = f"{type(model).__name__}.{name}" if name else type(model).__name__
            saved += counts.get(key, 0) * (1 - _density(weight))
    parameters: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    return SparseCost(
        n_parameters=sum(p.numel() for p in parameters.values()),
        n_nonzero=sum(int(p.count_nonzero()) for p in parameters.values()),
        dense_flops=total,
        flops=total - saved,
    )


def _density(weight: torch.Tensor) -> float:
    return int(weight.count_nonzero()) / max(1, weight.numel())


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """How a classifier does on one split besides its mean score; pruning may hide losses there.

    Attributes:
        ece: expected calibration error, over bins of equal mass, in 0..1.
        worst_class: index of the class with the lowest share of right answers, the first of equals.
        worst_class_accuracy: that share.
    """

    ece: float
    worst_class: int
    worst_class_accuracy: float


def class_quality(predictions: Predictions) -> ClassQuality | None:
    """Calibration and the worst class of outputs that are logits; None for other tasks."""
    if not are_class_logits(predictions.outputs, predictions.targets):
        return None
    targets = predictions.targets.numpy()
    confidence, right = top_confidence(predictions.outputs, targets)
    shares = {int(c): float(right[targets == c].mean()) for c in np.unique(targets)}
    worst = min(shares, key=lambda c: (shares[c], c))
    return ClassQuality(expected_calibration_error(confidence, right), worst, shares[worst])
