"""Metrics: how outputs and targets become one number, and which direction is better."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot._types import kind_of
from stockpot.errors import EvaluationError, StockpotError
from stockpot.evaluate.task import Metric

if TYPE_CHECKING:
    import torch


PerExample = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Floats = npt.NDArray[np.float64]


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
    low: float = 0.0
    high: float = 1.0

    def per_example(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """1.0 where right, 0.0 where wrong: float64 `(n,)`."""
        require_classes(self.name, outputs, targets)
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
    low: float = 0.0
    high: float = math.inf

    def per_example(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Nats of each example: float64 `(n,)`."""
        from torch.nn import functional

        require_classes(self.name, outputs, targets)
        return functional.cross_entropy(outputs.double(), targets, reduction="none")

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The mean in nats."""
        return mean(self.per_example(outputs, targets))


@dataclass(frozen=True, slots=True)
class MeanMetric(Metric):
    """A metric of your own that is a mean over examples.

    `per_example(outputs, targets)` returns `(n,)`. A value outside `low` to `high` is an error:
    rejecting a candidate before all of its examples were seen relies on the better one of them, and
    without it every candidate is scored in full.
    """

    per_example: PerExample
    name: str
    higher_is_better: bool = True
    low: float = -math.inf
    high: float = math.inf

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The mean of the per-example values."""
        return mean(self.per_example(outputs, targets))


@dataclass(frozen=True, slots=True)
class WholeMetric(Metric):
    """A metric that needs all examples at once, such as F1 or the Matthews correlation."""

    function: Callable[[torch.Tensor, torch.Tensor], float | torch.Tensor]
    name: str
    higher_is_better: bool = True
    per_example: None = None

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The value over all examples.

        Raises:
            EvaluationError: the function fails, as some do where a class holds no example.
        """
        try:
            return float(self.function(outputs, targets))
        except StockpotError:
            raise
        except Exception as error:  # whatever the function raises
            raise EvaluationError(f"the metric {self.name} fails: {one_line(error)}") from error


@dataclass(frozen=True, slots=True)
class ByCategory(Metric):
    """The values of a metric by category made into one: the worst, the mean, or that of one.

    Of a split without categories it is the metric itself.

    Attributes:
        of: the metric.
        which: `"worst"`, `"mean"`, or the name of a category.
    """

    of: Metric
    which: str
    per_example: None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """As `metric_by_name` takes it."""
        return f"{self.of.name} by {self.which}"

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As of the metric."""
        return self.of.higher_is_better

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The metric over all examples, which are of one category."""
        return self.of.compute(outputs, targets)

    def compute_by(
        self, outputs: torch.Tensor, targets: torch.Tensor, categories: Sequence[str]
    ) -> float:
        """See the class; not a number where no example is of the category that is named."""
        return self.of_values(by_category(self.of, outputs, targets, categories))

    def of_means(self, names: Sequence[str], place: npt.NDArray[np.int64], values: Floats) -> float:
        """The same of values by example, of which each is in the category `names[place]`."""
        n = np.bincount(place, minlength=len(names)).tolist()
        sums = np.bincount(place, values, minlength=len(names)).tolist()
        return self.of_values({name: sums[i] / n[i] for i, name in enumerate(names) if n[i]})

    def of_values(self, found: Mapping[str, float]) -> float:
        """The same of one value for each category that has examples."""
        if self.which == "mean":
            return math.fsum(found.values()) / len(found)
        if self.which == "worst":
            return min(found.values(), key=self.of.quality)
        return found.get(self.which, math.nan)


@dataclass(frozen=True, slots=True)
class InOrder(Metric):
    """A metric, and others by which models are compared where they are equal by those before.

    Its value is that of the first. A difference within noise is one: that models are within noise
    of each other is no order (a of b, b of c, and a not of c), equal scores are.

    Attributes:
        of: the first metric.
        then: the others, in order.
    """

    of: Metric
    then: tuple[Metric, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        """As `metric_by_name` takes it."""
        return " then ".join(one.name for one in (self.of, *self.then))

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As of the first."""
        return self.of.higher_is_better

    @property
    def low(self) -> float:  # type: ignore[override]
        """As of the first."""
        return self.of.low

    @property
    def high(self) -> float:  # type: ignore[override]
        """As of the first."""
        return self.of.high

    @property
    def per_example(self) -> PerExample | None:  # type: ignore[override]
        """As of the first."""
        return self.of.per_example

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The value of the first."""
        return self.of.compute(outputs, targets)


def value_of(
    metric: Metric,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    categories: Sequence[str] | None = None,
) -> float:
    """The metric over all examples, by their categories where it goes by them."""
    if isinstance(metric, InOrder):
        return value_of(metric.of, outputs, targets, categories)
    if categories is not None and isinstance(metric, ByCategory):
        return metric.compute_by(outputs, targets, categories)
    return metric.compute(outputs, targets)


def by_category(
    metric: Metric, outputs: torch.Tensor, targets: torch.Tensor, categories: Sequence[str]
) -> dict[str, float]:
    """Category → the metric over its examples, by name.

    >>> import torch
    >>> outputs, targets = torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1])
    >>> by_category(Accuracy(), outputs, targets, ["a", "a", "b"])
    {'a': 0.5, 'b': 1.0}
    """
    return {
        name: metric.compute(outputs[index], targets[index])
        for name, index in positions_by_category(categories).items()
    }


def positions_by_category(categories: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Category → where its examples stand, by name."""
    names, place = np.unique(np.asarray(categories, dtype=np.str_), return_inverse=True)
    return {name: np.flatnonzero(place == i) for i, name in enumerate(names.tolist())}


def mean(values: torch.Tensor) -> float:
    """The mean of float64 values, from a sum that is correctly rounded.

    `math.fsum` makes the result independent of the order of the examples, and monotone in each of
    them; both are what exact early rejection stands on.
    """
    return math.fsum(values.tolist()) / values.numel() if values.numel() else math.nan


def require_classes(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Refuse what is no class index for each row of logits.

    Raises:
        EvaluationError: outputs are not `(N, C)`, targets not integers `(N,)`, or not in 0 to C-1.
    """
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        raise EvaluationError(
            f"{name} compares logits (N, C) with one class index per example (N,); found outputs "
            f"{tuple(outputs.shape)} and {str(targets.dtype).removeprefix('torch.')} targets "
            f"{tuple(targets.shape)}. For several labels per example, or other targets, give a "
            "stockpot.evaluate.MeanMetric or WholeMetric with a function of (outputs, targets)."
        )
    n_classes = outputs.shape[1]
    wrong = targets[(targets < 0) | (targets >= n_classes)]
    if len(wrong):
        raise EvaluationError(
            f"{name}: {len(wrong)} of {len(targets)} examples have a label such as "
            f"{int(wrong[0])}, and the model has {n_classes} outputs, for labels 0 to "
            f"{n_classes - 1}"
        )


def confusion(outputs: torch.Tensor, targets: torch.Tensor) -> Floats:
    """Counts (C, C + 1) of target against predicted class, float64.

    The last column is of rows with NaN: no class is predicted, and none is right.
    """
    n = outputs.shape[-1]
    guesses = np.where(outputs.isnan().any(-1).numpy(), n, outputs.argmax(-1).numpy())
    counts = np.bincount(targets.numpy() * (n + 1) + guesses, minlength=n * (n + 1))
    return counts.reshape(n, n + 1).astype(np.float64)


def _divided(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _f1_by_class(counts: Floats) -> Floats:
    """F1 = 2·TP / (2·TP + FP + FN) of every class, 0 where a class is neither held nor guessed."""
    return _divided(2 * counts.diagonal(), _guessed(counts) + counts.sum(1))


def _guessed(counts: Floats) -> Floats:
    """How often each class is predicted."""
    guessed: Floats = counts[:, :-1].sum(0)
    return guessed


def _f1_macro(counts: Floats) -> float:
    """Mean F1 over the classes that are held or guessed."""
    return float(_f1_by_class(counts)[_guessed(counts) + counts.sum(1) > 0].mean())


def _f1_weighted(counts: Floats) -> float:
    """Mean F1 over classes, weighted by how many examples they hold."""
    return float((_f1_by_class(counts) * counts.sum(1)).sum() / counts.sum())


def _balanced_accuracy(counts: Floats) -> float:
    """Mean recall over the classes that are held."""
    held = counts.sum(1) > 0
    return float((counts.diagonal()[held] / counts.sum(1)[held]).mean())


def _matthews(counts: Floats) -> float:
    """Matthews correlation of targets and guesses; 0 where one of the two is constant."""
    n, held, guessed = counts.sum(), counts.sum(1), counts.sum(0)
    covariance = n * counts.trace() - held @ guessed[:-1]
    spread = (n**2 - held @ held) * (n**2 - guessed @ guessed)
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def _cohen_kappa(counts: Floats) -> float:
    """Agreement beyond chance, (p_o − p_e) / (1 − p_e); not a number where only one class is."""
    n = counts.sum()
    by_chance = float(_guessed(counts) @ counts.sum(1)) / n**2
    return math.nan if by_chance == 1 else (counts.trace() / n - by_chance) / (1 - by_chance)


@dataclass(frozen=True, slots=True)
class _OfCounts:
    """A function of the counts of target against predicted class."""

    name: str
    function: Callable[[Floats], float]

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        require_classes(self.name, outputs, targets)
        return float(self.function(confusion(outputs, targets)))


def _f1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """F1 of class 1 of two."""
    require_classes("f1", outputs, targets)
    counts = confusion(outputs, targets)
    if len(counts) != 2:
        raise EvaluationError(
            f"f1 is that of class 1 of two, and there are {len(counts)} classes; take f1-macro or "
            "f1-weighted"
        )
    return float(_f1_by_class(counts)[1])


def _auroc(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean over the classes that are held of the area under the ROC curve of their probability.

    Classes that hold no example, or all, have none. Ties count half.
    """
    from scipy.special import softmax
    from scipy.stats import rankdata

    require_classes("auroc", outputs, targets)
    shares, truth = softmax(outputs.double().numpy(), axis=-1), targets.numpy()
    areas = []
    for c in np.unique(truth):
        held = truth == c
        n, rest = int(held.sum()), int((~held).sum())
        if rest > 0:
            ranks = rankdata(shares[:, c])
            areas.append((ranks[held].sum() - n * (n + 1) / 2) / (n * rest))
    return float(np.mean(areas)) if areas else math.nan


def _accuracy_and_f1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """What GLUE reports for MRPC: the mean of accuracy and F1."""
    return (Accuracy().compute(outputs, targets) + _f1(outputs, targets)) / 2


_WHOLE: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "f1": _f1,
    "f1-macro": _OfCounts("f1-macro", _f1_macro),
    "f1-weighted": _OfCounts("f1-weighted", _f1_weighted),
    "balanced-accuracy": _OfCounts("balanced-accuracy", _balanced_accuracy),
    "matthews": _OfCounts("matthews", _matthews),
    "cohen-kappa": _OfCounts("cohen-kappa", _cohen_kappa),
    "auroc": _auroc,
    "accuracy-and-f1": _accuracy_and_f1,
}
_ALIASES = {"acc": "accuracy", "loss": "cross-entropy", "nll": "cross-entropy", "mcc": "matthews"}


def metric_by_name(name: str | Metric) -> Metric:
    """The metric of this name; a metric itself is returned as it is.

    Names: accuracy, cross-entropy (lower is better), balanced-accuracy, f1 (class 1 of two),
    f1-macro, f1-weighted, matthews, cohen-kappa, auroc, accuracy-and-f1 (mean of the two). Behind
    each, ` by worst`, ` by mean` or ` by` and a category go by the categories of a split. Several,
    with ` then ` between them, decide in order: a later one where models are equal by the earlier.

    >>> metric_by_name("loss").higher_is_better
    False

    Raises:
        EvaluationError: no metric has this name, or it is something else, such as a function.
    """
    if not isinstance(name, str):
        if isinstance(name, type) or not hasattr(name, "higher_is_better"):
            raise EvaluationError(
                f"metric is {kind_of(name)}, expected a name or a metric: wrap a function "
                "of (outputs, targets) as stockpot.evaluate.MeanMetric or WholeMetric"
            )
        return name
    if " then " in name:
        first, *others = map(metric_by_name, map(str.strip, name.split(" then ")))
        return InOrder(first, tuple(others))
    if " by " in name:
        plain, _, which = name.partition(" by ")
        return ByCategory(metric_by_name(plain), which.strip())
    key = name.lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key == "accuracy":
        return Accuracy()
    if key == "cross-entropy":
        return CrossEntropy()
    if key in _WHOLE:
        return WholeMetric(_WHOLE[key], key)
    known = ["accuracy", "cross-entropy", *_WHOLE]
    near = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise EvaluationError(
        f"no metric is named {name!r}{meant}; known are {', '.join(known)}. Give another as "
        "stockpot.evaluate.MeanMetric or WholeMetric with a function of (outputs, targets)."
    )
