"""Factors of several adapters put beside each other, made in parts: one adapter, and it is exact.

B is (c₁s₁B₁ | c₂s₂B₂ | …), and A the Aᵢ one below the other. Each number is read once and rounded
once, and no matrix is held in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot.errors import NonFiniteError
from stockpot.formats.adapters.layout import Factors
from stockpot.formats.adapters.update import Raw, matrix_shape
from stockpot.formats.base import Checkpoint
from stockpot.tensors.rounding import Array
from stockpot.tensors.spec import DType
from stockpot.tensors.sums import Unrepresentable, mix


@dataclass(frozen=True)
class Scaled:
    """The factors of one adapter, and what B is multiplied by."""

    source: Checkpoint
    factors: Factors
    factor: float


@dataclass(frozen=True)
class Beside:
    """The factors of one tensor of a mixture.

    Attributes:
        parts: in the order in which they stand beside each other.
        dtype: that they are rounded to.
    """

    parts: Sequence[Scaled]
    dtype: DType

    def down(self, start: int, stop: int) -> Raw:
        """Bytes `start` to `stop` of A."""
        first, last = self._items(start, stop)
        made: Array = np.empty(last - first, self.dtype.storage)
        at = -first
        for part in self.parts:
            name = part.factors.down
            n = part.source[name].numel
            a, b = max(at, 0), min(at + n, made.size)
            if a < b:
                self._round(part.source, name, a - at, 1.0, made[a:b])
            at += n
        return self._cut(made, first, start, stop)

    def up(self, start: int, stop: int) -> Raw:
        """Bytes `start` to `stop` of B: whole rows are made."""
        rank = sum(part.factors.rank for part in self.parts)
        first, last = self._items(start, stop)
        top, bottom = first // rank, -(-last // rank)
        made: Array = np.empty((bottom - top, rank), self.dtype.storage)
        at = 0
        for part in self.parts:
            r = part.factors.rank
            values: Array = np.empty((bottom - top) * r, self.dtype.storage)
            self._round(part.source, part.factors.up, top * r, part.factor, values)
            made[:, at : at + r] = values.reshape(-1, r)
            at += r
        return self._cut(made.reshape(-1), top * rank, start, stop)

    def matrices(self) -> tuple[Array, Array]:
        """B (outputs, Σ r) and A (Σ r, inputs)."""
        rank = sum(part.factors.rank for part in self.parts)
        source, own = self.parts[0].source, self.parts[0].factors
        outputs = source[own.up].shape[0]
        _, inputs = matrix_shape(source[own.down])
        size = rank * self.dtype.storage.itemsize
        up, down = self.up(0, outputs * size), self.down(0, inputs * size)
        storage = self.dtype.storage
        return up.view(storage).reshape(outputs, rank), down.view(storage).reshape(rank, inputs)

    def _items(self, start: int, stop: int) -> tuple[int, int]:
        size = self.dtype.storage.itemsize
        return start // size, -(-stop // size)

    def _cut(self, made: Array, first: int, start: int, stop: int) -> Raw:
        at = first * self.dtype.storage.itemsize
        return made.view(np.uint8)[start - at : stop - at]

    def _round(self, source: Checkpoint, name: str, first: int, factor: float, out: Array) -> None:
        """Put items of a tensor from `first` on into `out`, times a number, rounded once."""
        own = source[name].dtype
        size = own.storage.itemsize
        stored = source.part(name, first * size, (first + out.size) * size).view(own.storage)
        try:
            mix([stored], [factor], dtype=own.value, out_dtype=self.dtype.value, out=out)
        except Unrepresentable as found:
            raise NonFiniteError(
                f"{source.path}: tensor {name} holds NaN or infinity; expected numbers: leave this "
                "ingredient out"
                if found.index is not None
                else f"{source.path}: tensor {name} times its scale does not fit "
                f"{self.dtype.value}: choose a wider dtype, such as f32",
                path=source.path,
                tensor=name,
            ) from None


def held(sources: Iterable[Checkpoint]) -> list[Raw]:
    """Pieces of the files of `sources`, which stay mapped while these are held.

    That takes no memory and no descriptor; mapping a file anew for each factor takes longer than
    reading it.
    """
    found = list[Raw]()
    for source in sources:
        name = next(iter(source))
        if source.files and not source.computed and not source.scattered(name):
            found.append(source.raw(name))
    return found
