"""What a recipe needs to know of the user's problem: data with roles, a model, a metric."""

from __future__ import annotations

import difflib
import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stockpot._types import kind_of
from stockpot.errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset


class Role(enum.StrEnum):
    """What a split may be used for."""

    HELD_OUT = "held-out"  # to choose
    TEST = "test"  # to report, same distribution
    SHIFT = "shift"  # to report, another distribution


@dataclass(frozen=True)
class Split:
    """A data set and what it may be used for.

    `dataset` is map-style: `(input, target)` pairs, or dicts with `labels`. `fingerprint` says what
    it contains; when None it is the data set's own `fingerprint` attribute, else a hash of its
    examples (made once, cached). Splits with the same `images` were made from the same originals in
    the same order (a blurred and a noisy copy of one test set): the interval of their average
    resamples them jointly. A shift with `averaged=False` is reported beside the average over shifts
    and not in it: what a base was trained on, say, is no shift for the base. `categories` names the
    category of each example, in order: scores are then shown by category, and a metric such as
    `"accuracy by worst"` decides by them.
    """

    dataset: Dataset[Any]
    role: Role | str = Role.HELD_OUT
    fingerprint: str | None = None
    images: str | None = None
    averaged: bool = True
    categories: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.role not in set(Role):
            near = difflib.get_close_matches(str(self.role), [str(role) for role in Role], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TaskError(
                f"{self.role!r} is no role; expected held-out (chooses), test or shift "
                f"(report){hint}"
            )
        object.__setattr__(self, "role", Role(self.role))
        if not hasattr(self.dataset, "__getitem__") or not hasattr(self.dataset, "__len__"):
            inner = getattr(self.dataset, "dataset", None)
            remedy = "give its .dataset" if inner is not None else "give one with both"
            raise TaskError(
                f"a split holds {kind_of(self.dataset)}, and a data set has a length and "
                f"examples by number (__len__ and __getitem__): {remedy}"
            )
        if self.categories is not None:
            if len(self.categories) != len(self.dataset):
                raise TaskError(
                    f"a split of {len(self.dataset)} examples has {len(self.categories)} "
                    "categories; expected one for each example"
                )
            object.__setattr__(self, "categories", tuple(map(str, self.categories)))


@dataclass(frozen=True, slots=True)
class Score:
    """One number with its uncertainty: `low` and `high` bound a 95 % interval over n examples."""

    value: float
    n: int
    low: float | None
    high: float | None
    metric: str
    split: str
    higher_is_better: bool = True

    def quality(self, value: float) -> float:
        """`value` with the sign that makes larger always better; see `Metric.quality`."""
        return value if self.higher_is_better else -value


def are_class_logits(outputs: Any, targets: Any) -> bool:
    """Whether outputs are logits (n, C) and targets class indices (n,).

    It is what tasks of classification have in common, whoever wrote them.

    Args:
        outputs: a tensor or array of a task's outputs.
        targets: a tensor of its targets.
    """
    return bool(outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point())


class Metric(ABC):
    """How outputs become one number, and which direction of it is better.

    Attributes:
        name: as tables and records show it.
        higher_is_better: whether a larger value is a better model.
        low: no per-example value is below it; may be infinite.
        high: none is above it; may be infinite.
        per_example: `(outputs, targets) -> float64 (n,)`, whose mean is the value; None for metrics
            that are no means over examples (F1, Matthews), which `compute` then gives.
    """

    name: str
    higher_is_better: bool
    low: float = -math.inf
    high: float = math.inf
    per_example: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None

    @abstractmethod
    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The value over all examples."""

    @property
    def best(self) -> float | None:
        """The best value that an example can have; None where no finite bound is known."""
        bound = self.high if self.higher_is_better else self.low
        return bound if math.isfinite(bound) else None

    def better(self, a: float, b: float) -> bool:
        """Whether the value `a` is strictly better than `b`."""
        return a > b if self.higher_is_better else a < b

    def quality(self, value: float) -> float:
        """`value` with the sign that makes larger always better, to sort and maximise by."""
        return value if self.higher_is_better else -value


@runtime_checkable
class Task(Protocol):
    """The architecture, the splits, how to predict, and the metric.

    `ClassificationTask` is the usual one. A task may also have a method
    `augment(batch, generator) -> batch`, the transform of training: fine-tuning applies it to every
    batch, and BatchNorm statistics are recalibrated with it.
    """

    @property
    def splits(self) -> Mapping[str, Split]:
        """Data by name, each with its role."""
        ...

    @property
    def metric(self) -> Metric:
        """How outputs become one number."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of one forward pass when nothing else is asked for."""
        ...

    @property
    def train_set(self) -> Dataset[Any] | None:
        """What ingredients are fine-tuned on; None when they come from elsewhere."""
        ...

    @property
    def calibration_set(self) -> Dataset[Any] | None:
        """Examples without augmentation, for the BatchNorm policy `clean`."""
        ...

    def build(self) -> nn.Module:
        """A model of the architecture; its weights do not matter."""
        ...

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterable[Any]:
        """Collated batches of the examples at `indices` (all, in order, when None)."""
        ...

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Outputs of one batch, one row per example: logits (N, C) for classification."""
        ...

    def targets(self, batch: Any) -> torch.Tensor:
        """Targets of one batch, one row per example."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Differentiable mean loss of a batch."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever build, predict or the metric change; keys the journal."""
        ...
