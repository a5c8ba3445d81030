"""Rules of task vectors: the base plus what is made of the changes τᵢ = θᵢ − θ₀."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import Raw, Rule, TensorPlan
from stockpot.mixing.rules.order import HELD
from stockpot.tensors.rounding import widen
from stockpot.tensors.sums import Unrepresentable

F64 = npt.NDArray[np.float64]
_Job = TypeVar("_Job")
_Found = TypeVar("_Found")

_BLOCK = 1 << 18
_THREADS = 2

Shares = float | tuple[float, ...]
"""One number for all ingredients, or one for each, in the order of the ingredients."""


@dataclass(frozen=True, kw_only=True)
class TaskVectorRule(Rule):
    """θ₀ + λ · (what is made of the task vectors), in float64 and rounded once. It is abstract.

    Coefficients are weights wᵢ of the task vectors; they may have any sum, and the papers' are 1.

    Attributes:
        scale: λ.
    """

    prepare_bytes = _THREADS * (4 * HELD * 8 + 8 * _BLOCK * 8)

    scale: float = option(1.0, help="λ, by which the merged task vector is multiplied.")

    @property
    def uses_base(self) -> bool:
        """Always: task vectors start at the base."""
        return True

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        *values, base = tensor.values(blocks)
        with np.errstate(invalid="ignore", over="ignore"):
            changes = [value - base for value in values]
            # Here, and not by the result: what is trimmed away could hide it.
            if not all(np.isfinite(change).all() for change in changes):
                raise Unrepresentable(None)
            merged = base + self.scale * self.merged(tensor, changes, start)
        tensor.store(merged, out)

    @abstractmethod
    def merged(self, tensor: TensorPlan, changes: Sequence[F64], start: int) -> F64:
        """What is made of the task vectors, before λ.

        Args:
            tensor: which tensor it is.
            changes: τᵢ of each of `tensor.sources`, of the same items.
            start: which item of the tensor is the first of them.
        """


@dataclass(frozen=True, kw_only=True)
class TrimmedTaskVectors(TaskVectorRule):
    """Σ wᵢ·trim(τᵢ) over all models, or over those that have the elected sign. It is abstract.

    The elected sign of an element is that of Σ wᵢ·trim(τᵢ).

    Attributes:
        keep: share of the entries that trimming keeps: of each model, or of all alike.
        signs: `"elected"` leaves out entries of the other sign.
        normalise: divide the sum by the weights that went into it: a mean and no sum.
        rescale: what kept entries are multiplied with: 1 over the probability that they were kept
            (`"expected"`), or what gives the tensor of each model the L1 norm it had (`"l1"`).
    """

    keep: Shares = option(0.2, help="Share of the entries of a task vector that is kept.")
    signs: Literal["all", "elected"] = option("all", help="Leave out those of the other sign.")
    normalise: bool = option(False, help="Take the mean of what is kept, and not the sum.")
    rescale: Literal["none", "expected", "l1"] = option("none", help="Make up for what is lost.")
    prepared: Mapping[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.keep, Sequence):
            object.__setattr__(self, "keep", tuple(self.keep))
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if not all(0 <= keep <= 1 for keep in keeps):
            raise RecipeError(f"keep is {self.keep}: expected shares of the entries, 0 to 1")

    def prepare(self, tensors: Sequence[TensorPlan]) -> Self:
        """Find what trimming has to know, and the norms where they are kept."""
        ready = replace(self, prepared=self.findings(tensors))
        if self.rescale != "l1":
            return ready
        factors = in_threads(ready._l1_factor, per_model(tensors))
        found = {("l1", t.positions[i], t.source.name): f
                 for (t, i), f in zip(per_model(tensors), factors, strict=True)}  # fmt: skip
        return replace(ready, prepared={**ready.prepared, **found})

    def findings(self, tensors: Sequence[TensorPlan]) -> dict[Any, Any]:
        """What `trimmed` has to know of `tensors` beforehand."""
        del tensors
        return {}

    @abstractmethod
    def trimmed(self, tensor: TensorPlan, i: int, change: F64, start: int) -> F64:
        """The task vector of source `i` with zeros where nothing is kept; see `merged`."""

    def merged(self, tensor: TensorPlan, changes: Sequence[F64], start: int) -> F64:
        """See `TaskVectorRule.merged`."""
        name, weights = tensor.source.name, tensor.coefficients
        terms = []
        for i, change in enumerate(changes):
            factor = self.prepared.get(("l1", tensor.positions[i], name), 1.0)
            terms.append(self.trimmed(tensor, i, change, start) * (factor * weights[i]))
        if self.signs == "elected":
            return merge_elected(terms, weights, self.tie_sign(tensor), normalise=self.normalise)
        total = sum_of(terms)
        divisor = sum(weights) if self.normalise else 1.0
        return total / (divisor if abs(divisor) > 1e-8 else 1.0)

    def tie_sign(self, tensor: TensorPlan) -> Callable[[], int]:
        """Gives the sign, 1 or −1, of elements whose sum is exactly 0."""
        del tensor
        return lambda: 1

    def keep_of(self, position: int) -> float:
        """The share that is kept of the ingredient at `position`."""
        return self.keep[position] if isinstance(self.keep, tuple) else self.keep

    def _l1_factor(self, job: tuple[TensorPlan, int]) -> float:
        tensor, i = job
        before = after = 0.0
        start = 0
        for change in changes_of(tensor, i):
            before += float(np.abs(change).sum())
            after += float(np.abs(self.trimmed(tensor, i, change, start)).sum())
            start += change.size
        return before / after if min(before, after) >= 1e-7 else 1.0


def merge_elected(
    terms: Sequence[F64], weights: Sequence[float], tie: Callable[[], int], *, normalise: bool
) -> F64:
    """The sum, or the weighted mean, of those terms that have the sign of the sum of all.

    Args:
        terms: wᵢ·τᵢ, trimmed.
        weights: wᵢ.
        tie: gives the sign where terms cancel out.
        normalise: divide by the weights of the terms that are summed.
    """
    # Products with masks rather than np.where, which takes three times as long.
    total = sum_of(terms)
    up, down = total > 0, total < 0
    decided = up | down
    if any(((term != 0) & ~decided).any() for term in terms):
        elected = up if tie() > 0 else down
        elected |= ~decided
    merged, share = np.zeros_like(total), np.zeros_like(total)
    for term, weight in zip(terms, weights, strict=True):
        # Zeros have no sign: they do not count, and where all are zero nothing is divided.
        agree = ((term > 0) & up) | ((term < 0) & down)
        merged += term * agree
        if normalise:
            share += agree * weight
    if normalise:
        share[share == 0] = 1.0
        merged /= share
    return merged


def sum_of(terms: Sequence[F64]) -> F64:
    """Their sum, in order, without a copy of all of them side by side."""
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


def changes_of(tensor: TensorPlan, i: int, base: int = -1) -> Iterator[F64]:
    """τ of source `i`, in blocks; what is not finite counts as no change here."""
    name = tensor.source.name
    inputs = (tensor.inputs[i], tensor.inputs[base])
    readers = [one.reader(name) for one in inputs]
    dtypes = [one[name].dtype for one in inputs]
    for start in range(0, tensor.n_items, _BLOCK):
        stop = min(start + _BLOCK, tensor.n_items)
        value, origin = (
            widen(read(start * size, stop * size).view(dtype.storage), dtype.value)
            for read, dtype in zip(readers, dtypes, strict=True)
            for size in [dtype.storage.itemsize]
        )
        with np.errstate(invalid="ignore", over="ignore"):
            change = value - origin
        finite = np.isfinite(change)
        yield change if finite.all() else np.where(finite, change, 0.0)


def magnitudes(tensors: Iterable[TensorPlan], position: int) -> Iterator[F64]:
    """|τ| of the ingredient at `position` over `tensors`, in blocks."""
    for tensor in tensors:
        if position in tensor.positions:
            for change in changes_of(tensor, tensor.positions.index(position)):
                yield np.abs(change)


def per_model(tensors: Iterable[TensorPlan]) -> list[tuple[TensorPlan, int]]:
    """Every tensor with every source."""
    return [(tensor, i) for tensor in tensors for i in range(len(tensor.sources))]


def in_threads(function: Callable[[_Job], _Found], jobs: Sequence[_Job]) -> list[_Found]:
    """The results of `function`, in order; NumPy lets two threads work at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, jobs))
