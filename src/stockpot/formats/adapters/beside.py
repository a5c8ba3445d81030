"""Factors of several adapters put beside each other, made in parts: one adapter, and it is exact.

B is (c₁s₁B₁ | c₂s₂B₂ | …), and A the Aᵢ one below the other. Each number is read once and rounded
once, and no matrix is held in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot.errors import NonFiniteError
from stockpot.formats.adapters.layout import Factors
from stockpot.formats.adapters.update import Raw, matrix_shape, not_finite
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

    def down(self, out: Raw, start: int) -> None:
        """Put bytes of A, from `start` on, into `out`."""
        n = sum(part.source[part.factors.down].numel for part in self.parts)
        self._put(out, start, (n, 1), self._down)

    def _down(self, made: Array, first: int) -> None:
        """Items of A from `first` on."""
        at = -first
        for part in self.parts:
            name = part.factors.down
            n = part.source[name].numel
            a, b = max(at, 0), min(at + n, len(made))
            if a < b:
                self._round(part.source, name, a - at, 1.0, made[a:b])
            at += n

    def up(self, out: Raw, start: int) -> None:
        """Put bytes of B, from `start` on, into `out`."""
        self._put(out, start, self._shape_of_up, self._up)

    def _up(self, made: Array, top: int) -> None:
        """Rows of B from `top` on."""
        rows = made.reshape(-1, self._shape_of_up[1])
        at = 0
        for part in self.parts:
            r = part.factors.rank
            values: Array = np.empty(len(rows) * r, self.dtype.storage)
            self._round(part.source, part.factors.up, top * r, part.factor, values)
            rows[:, at : at + r] = values.reshape(-1, r)
            at += r

    @property
    def _shape_of_up(self) -> tuple[int, int]:
        first = self.parts[0]
        rank = sum(part.factors.rank for part in self.parts)
        return first.source[first.factors.up].shape[0], rank

    def _put(
        self, out: Raw, start: int, shape: tuple[int, int], make: Callable[[Array, int], None]
    ) -> None:
        """Have whole rows made, right in `out` where it begins and ends with one."""
        width = shape[1] * self.dtype.storage.itemsize
        first, last = start // width, -(-(start + out.size) // width)
        if (start, start + out.size) == (first * width, last * width):
            make(out.view(self.dtype.storage), first)
            return
        made: Array = np.empty((last - first) * shape[1], self.dtype.storage)
        make(made, first)
        at = start - first * width
        out[:] = made.view(np.uint8)[at : at + out.size]

    def matrices(self) -> tuple[Array, Array]:
        """B (outputs, Σ r) and A (Σ r, inputs)."""
        outputs, rank = self._shape_of_up
        own = self.parts[0]
        _, inputs = matrix_shape(own.source[own.factors.down])
        up: Array = np.empty(outputs * rank, self.dtype.storage)
        down: Array = np.empty(rank * inputs, self.dtype.storage)
        self._up(up, 0)
        self._down(down, 0)
        return up.reshape(outputs, rank), down.reshape(rank, inputs)

    def _round(self, source: Checkpoint, name: str, first: int, factor: float, out: Array) -> None:
        """Put items of a tensor from `first` on into `out`, times a number, rounded once."""
        own = source[name].dtype
        size = own.storage.itemsize
        stored = source.part(name, first * size, (first + out.size) * size).view(own.storage)
        try:
            mix([stored], [factor], dtype=own.value, out_dtype=self.dtype.value, out=out)
        except Unrepresentable as found:
            if found.index is not None:
                raise not_finite(source, name) from None
            raise NonFiniteError(
                f"{source.path}: tensor {name} times its scale does not fit {self.dtype.value}: "
                "choose a wider dtype, such as f32",
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
