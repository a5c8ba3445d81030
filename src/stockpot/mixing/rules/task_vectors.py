"""Rules of task vectors: the base plus what is made of the changes τᵢ = θᵢ − θ₀."""

from __future__ import annotations

import functools
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
from stockpot.mixing.rules.order import HELD, Numbers
from stockpot.tensors.changes import (
    DIGIT_BITS,
    count_sizes,
    l1_norms,
    merge,
    sizes,
)
from stockpot.tensors.trim import Merging, Stored, Term, Trim

F64 = npt.NDArray[np.float64]
_Job = TypeVar("_Job")
_Found = TypeVar("_Found")

BLOCK = 1 << 18
"""Items that are looked at together before anything is merged."""
_THREADS = 2

Shares = float | tuple[float, ...]
"""One number for all ingredients, or one for each, in the order of the ingredients."""


@dataclass(frozen=True, kw_only=True)
class TaskVectorRule(Rule):
    """θ₀ + λ · (what is made of the task vectors), in float64 and rounded once. It is abstract.

    A task vector with NaN or infinity in it is refused, in what is trimmed away, too.

    Coefficients are weights wᵢ of the task vectors; they may have any sum, and the papers' are 1.

    Attributes:
        scale: λ.
    """

    prepare_bytes = _THREADS * (4 * HELD * 8 + 8 * BLOCK * 8)

    scale: float = option(1.0, help="λ, by which the merged task vector is multiplied.")

    @property
    def uses_base(self) -> bool:
        """Always: task vectors start at the base."""
        return True

    def for_scales(self) -> Self:
        """This rule, which may keep what it makes before λ, since several λ are to come."""
        return self


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
        """What `trim` has to know of `tensors` beforehand."""
        del tensors
        return {}

    @abstractmethod
    def trim(self, tensor: TensorPlan, i: int, start: int, stop: int) -> Trim:
        """Which of the items `start` to `stop` of the task vector of source `i` are kept."""

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        *values, base = tensor.stored(blocks)
        stop, weights = start + base.block.size, tensor.coefficients
        terms = []
        for i, value in enumerate(values):
            factor = self.prepared.get(("l1", tensor.positions[i], tensor.source.name), 1.0)
            terms.append(Term(value, self.trim(tensor, i, start, stop), factor * weights[i]))
        elect = self.signs == "elected"
        divisor = sum(weights) if self.normalise and not elect else 1.0
        how = Merging(
            weights=weights,
            elect=elect,
            normalise=self.normalise,
            divisor=divisor if abs(divisor) > 1e-8 else 1.0,
            scale=self.scale,
        )
        sign = functools.partial(self.tie_sign, tensor)
        merge(terms, base, how, sign, tensor.stored_output(out))

    def tie_sign(self, tensor: TensorPlan) -> int:
        """The sign, 1 or −1, of elements whose sum is exactly 0."""
        del tensor
        return 1

    def keep_of(self, position: int) -> float:
        """The share that is kept of the ingredient at `position`."""
        return self.keep[position] if isinstance(self.keep, tuple) else self.keep

    def _l1_factor(self, job: tuple[TensorPlan, int]) -> float:
        tensor, i = job
        before = after = 0.0
        start = 0
        for value, base in stored_pairs(tensor, i):
            trim = self.trim(tensor, i, start, start + value.block.size)
            norms = l1_norms(value, base, trim)
            before, after = before + float(norms[0]), after + float(norms[1])
            start += value.block.size
        return before / after if min(before, after) >= 1e-7 else 1.0


def stored_blocks(tensor: TensorPlan, inputs: Sequence[int]) -> Iterator[list[Stored]]:
    """The same block of several of `tensor.inputs`, block by block."""
    name = tensor.source.name
    chosen = [tensor.inputs[i] for i in inputs]
    readers = [one.reader(name) for one in chosen]
    dtypes = [one[name].dtype for one in chosen]
    for start in range(0, tensor.n_items, BLOCK):
        stop = min(start + BLOCK, tensor.n_items)
        yield [
            Stored(read(start * size, stop * size).view(dtype.storage), dtype.value)
            for read, dtype in zip(readers, dtypes, strict=True)
            for size in [dtype.storage.itemsize]
        ]


def stored_pairs(tensor: TensorPlan, i: int) -> Iterator[tuple[Stored, Stored]]:
    """Blocks of source `i` and the same ones of the base."""
    return ((value, base) for value, base in stored_blocks(tensor, [i, -1]))


class Magnitudes(Numbers):
    """|τ| of the ingredient at `position` over `tensors`, read again for each pass."""

    def __init__(self, tensors: Sequence[TensorPlan], position: int) -> None:
        self._of = [(t, t.positions.index(position)) for t in tensors if position in t.positions]
        self.n = sum(tensor.n_items for tensor, _ in self._of)

    def count(self, prefix: int, shift: int) -> npt.NDArray[np.int64]:
        """See `Numbers.count`."""
        counts = np.zeros(1 << DIGIT_BITS, np.int64)
        for value, base in self._pairs():
            counts += count_sizes(value, base, prefix, shift)
        return counts

    def bits(self, prefix: int = 0, shift: int = 64) -> npt.NDArray[np.uint64]:
        """See `Numbers.bits`."""
        return np.concatenate([sizes(*pair, prefix, shift) for pair in self._pairs()])

    def _pairs(self) -> Iterator[tuple[Stored, Stored]]:
        for tensor, i in self._of:
            yield from stored_pairs(tensor, i)


def per_model(tensors: Iterable[TensorPlan]) -> list[tuple[TensorPlan, int]]:
    """Every tensor with every source."""
    return [(tensor, i) for tensor in tensors for i in range(len(tensor.sources))]


def in_threads(function: Callable[[_Job], _Found], jobs: Sequence[_Job]) -> list[_Found]:
    """The results of `function`, in order; NumPy lets two threads work at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, jobs))
