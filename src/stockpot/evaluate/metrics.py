"""Metrics: how outputs and targets become one number, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stockpot.errors import EvaluationError
from stockpot.evaluate.task import Metric

if TYPE_CHECKING:
    import torch


PerExample = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Accuracy(Metric):
    """Share of examples whose largest output is at the target: Σ 1[argmax f(x) = y] / n.

    Outputs are logits `(n, C)` of any float dtype, targets class indices `(n,)`. Equal logits count
    for the class of the smaller index, as in `torch.argmax`; a row with NaN is wrong.

    >>> import torch
    >>> Accuracy().compute(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    bounded: bool = True

    def per_example(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """1.0 where right, 0.0 where wrong: float64 `(n,)`."""
        right = (outputs.argmax(-1) == targets) & ~outputs.isnan().any(-1)
        return right.double()

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The share of right answers."""
        return mean(self.per_example(outputs, targets))


@dataclass(frozen=True, slots=True)
class CrossEntropy(Metric):
    """Mean negative log likelihood in nats: −Σ log softmax(f(x))_y / n; lower is better.

    Computed in float64 from logits `(n, C)` and class indices `(n,)`.

    >>> import torch
    >>> round(CrossEntropy().compute(torch.zeros(1, 4), torch.tensor([2])), 6)
    1.386294
    """

    name: str = "cross-entropy"
    higher_is_better: bool = False
    bounded: bool = False

    def per_example(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Nats of each example: float64 `(n,)`."""
        from torch.nn import functional

        return functional.cross_entropy(outputs.double(), targets, reduction="none")

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The mean in nats."""
        return mean(self.per_example(outputs, targets))


@dataclass(frozen=True, slots=True)
class MeanMetric(Metric):
    """A metric of your own that is a mean over examples.

    `per_example(outputs, targets)` returns `(n,)`; values must be ≥ 0, and ≤ 1 when `bounded`:
    rejecting a candidate before all of its examples were seen relies on it.
    """

    per_example: PerExample
    name: str
    higher_is_better: bool = True
    bounded: bool = True

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The mean of the per-example values."""
        return mean(self.per_example(outputs, targets))


@dataclass(frozen=True, slots=True)
class WholeMetric(Metric):
    """A metric that needs all examples at once, such as F1 or the Matthews correlation."""

    function: Callable[[torch.Tensor, torch.Tensor], float | torch.Tensor]
    name: str
    higher_is_better: bool = True
    bounded: bool = False
    per_example: None = None

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The value over all examples."""
        return float(self.function(outputs, targets))


def mean(values: torch.Tensor) -> float:
    """The mean of float64 values, from a sum that is correctly rounded.

    `math.fsum` makes the result independent of the order of the examples, and monotone in each of
    them; both are what exact early rejection stands on.
    """
    return math.fsum(values.tolist()) / values.numel() if values.numel() else math.nan


Average = Literal["micro", "macro", "weighted"]


@dataclass(frozen=True, slots=True)
class _TorchMetric:
    """A function of torchmetrics, imported when it is first used: that import takes seconds."""

    function: str
    average: Average | None = None

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        from torchmetrics.functional import classification

        function = getattr(classification, self.function)
        options = {} if self.average is None else {"average": self.average}
        if self.function != "multiclass_auroc":
            outputs = outputs.argmax(-1)
        n_classes = max(2, outputs.shape[-1] if outputs.ndim > 1 else int(outputs.max()) + 1)
        n_classes = max(n_classes, int(targets.max()) + 1)
        return float(function(outputs, targets, num_classes=n_classes, **options))


@dataclass(frozen=True, slots=True)
class _BinaryF1:
    """F1 of class 1."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        from torchmetrics.functional.classification import binary_f1_score

        return float(binary_f1_score(outputs.argmax(-1), targets))


@dataclass(frozen=True, slots=True)
class _MeanOfAccuracyAndF1:
    """What GLUE reports for MRPC."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return (Accuracy().compute(outputs, targets) + _BinaryF1()(outputs, targets)) / 2


_WHOLE: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "f1": _BinaryF1(),
    "f1-macro": _TorchMetric("multiclass_f1_score", "macro"),
    "f1-weighted": _TorchMetric("multiclass_f1_score", "weighted"),
    "balanced-accuracy": _TorchMetric("multiclass_recall", "macro"),
    "matthews": _TorchMetric("multiclass_matthews_corrcoef"),
    "cohen-kappa": _TorchMetric("multiclass_cohen_kappa"),
    "auroc": _TorchMetric("multiclass_auroc", "macro"),
    "accuracy-and-f1": _MeanOfAccuracyAndF1(),
}
_ALIASES = {"acc": "accuracy", "loss": "cross-entropy", "nll": "cross-entropy", "mcc": "matthews"}


def metric_by_name(name: str | Metric) -> Metric:
    """The metric of this name; a metric itself is returned as it is.

    Names: accuracy, cross-entropy (lower is better), balanced-accuracy, f1 (class 1 of two),
    f1-macro, f1-weighted, matthews, cohen-kappa, auroc, accuracy-and-f1 (mean of the two).

    >>> metric_by_name("loss").higher_is_better
    False

    Raises:
        EvaluationError: no metric has this name.
    """
    if not isinstance(name, str):
        return name
    key = name.lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key == "accuracy":
        return Accuracy()
    if key == "cross-entropy":
        return CrossEntropy()
    if key in _WHOLE:
        return WholeMetric(_WHOLE[key], key)
    known = ", ".join(["accuracy", "cross-entropy", *_WHOLE])
    raise EvaluationError(
        f"no metric is named {name!r}; known are {known}. Give another as "
        "stockpot.evaluate.MeanMetric or WholeMetric with a function of (outputs, targets)."
    )
