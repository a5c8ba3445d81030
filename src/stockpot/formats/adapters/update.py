"""What an adapter makes of one tensor, exactly: float64 inside, rounded once, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot.errors import NonFiniteError
from stockpot.formats.adapters.layout import Factors
from stockpot.formats.base import Checkpoint
from stockpot.tensors import compiled
from stockpot.tensors.rounding import Array, finite, narrow, widen
from stockpot.tensors.spec import TensorSpec

F64: TypeAlias = npt.NDArray[np.float64]
Raw: TypeAlias = npt.NDArray[np.uint8]

BLOCK = 1 << 18
"""Elements of a tensor that are made at a time, in whole rows, so that they stay in the cache.

Where blocks begin depends on the shape alone, so that a tensor made in parts has the bits of the
whole."""


@dataclass(frozen=True)
class Update:
    """What one adapter does to one tensor, seen as a matrix (rows, columns): W₀ + s·L·R.

    With magnitudes m (DoRA; Liu et al. 2024, arXiv 2402.09353, eq. 5) it is V·m/‖V‖ with
    V = W₀ + s·L·R and a norm for each output: of rows, or of columns where `is_flipped`.

    Attributes:
        source: the adapter as stored.
        factors: which tensors of it.
        is_flipped: whether the tensor is stored as (in, out), so that L is Aᵀ and R is Bᵀ.
    """

    source: Checkpoint
    factors: Factors
    is_flipped: bool

    @property
    def up(self) -> F64:
        """B, (outputs, r), without the scale."""
        return _matrix(self.source, self.factors.up, by_rows=True)

    @property
    def down(self) -> F64:
        """A, (r, inputs)."""
        return _matrix(self.source, self.factors.down, by_rows=False)

    def product(self) -> tuple[F64, F64]:
        """s·L (rows, r) and R (r, columns)."""
        return oriented(self.up * self.factors.scale, self.down, self.is_flipped)

    @property
    def magnitude(self) -> F64 | None:
        """m, one for each output; None for plain low-rank updates."""
        name = self.factors.magnitude
        return None if name is None else values_of(self.source, name).reshape(-1)


def oriented(up: F64, down: F64, is_flipped: bool) -> tuple[F64, F64]:
    """L and R of a tensor whose updates are B·A, or its transpose."""
    return (down.T, up.T) if is_flipped else (up, down)


def stored_values(checkpoint: Checkpoint, name: str) -> Array:
    """The elements of a tensor in the type that they are stored in, flat.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    spec = checkpoint[name]
    stored: Array = checkpoint.raw(name).view(spec.dtype.storage)
    if not finite(stored, spec.dtype.value):
        raise not_finite(checkpoint, name)
    return stored


def not_finite(checkpoint: Checkpoint, name: str) -> NonFiniteError:
    """The error of a tensor of an adapter that holds NaN or infinity."""
    return NonFiniteError(
        f"{checkpoint.path}: tensor {name} holds NaN or infinity; expected numbers: leave this "
        "ingredient out",
        path=checkpoint.path,
        tensor=name,
    )


def values_of(checkpoint: Checkpoint, name: str) -> F64:
    """A tensor as float64, exactly.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    spec = checkpoint[name]
    return widen(stored_values(checkpoint, name), spec.dtype.value).reshape(spec.shape)


def _matrix(source: Checkpoint, name: str, *, by_rows: bool) -> F64:
    found = values_of(source, name)
    if found.ndim > 2:  # of a convolution: B has kernels of size 1
        found = found.reshape(found.shape[:2]) if by_rows else found.reshape(found.shape[0], -1)
    return found


@dataclass(frozen=True)
class Part:
    """A term c·W of a sum of tensors.

    Attributes:
        coefficient: c.
        start: reads what W starts from, block by block in float64; None: the base.
        left: s·L of its update; None for W = start.
        right: R.
        magnitude: of DoRA.
        is_flipped: see `Update`.
    """

    coefficient: float
    start: Callable[[int, int], F64] | None = None
    left: F64 | None = None
    right: F64 | None = None
    magnitude: F64 | None = None
    is_flipped: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether it is the base and a low-rank update of it."""
        return self.start is None and self.magnitude is None


class WeightSum:
    """Σ c·W of one tensor over adapters of one base, made in blocks of whole rows.

    It has state: norms of columns, which take a pass of their own, are made once.

    Args:
        spec: what comes out.
        base: reads rows of W₀ in float64.
        share: the coefficient of W₀ in what is linear: the sum of those coefficients.
        product: s·c·L of all linear parts side by side, and their R, one below the other; None
            without any.
        others: what is not linear in its factors, or starts from something else.
    """

    def __init__(
        self,
        spec: TensorSpec,
        base: Callable[[int, int], F64],
        share: float,
        product: tuple[F64, F64] | None,
        others: Sequence[Part] = (),
    ) -> None:
        self.spec = spec
        self._base, self._share, self._others = base, share, tuple(others)
        self._left = None if product is None else product[0]
        self._right = None if product is None else product[1]
        self.rows, self.columns = matrix_shape(spec)

    def into(self, out: Raw, start: int, stop: int) -> bool:
        """Put bytes `start` to `stop` of the tensor into `out`; whether all of it is finite."""
        size = self.spec.dtype.storage.itemsize
        good, width = True, self.columns * size
        for first, last in self._blocks(start // width, -(-stop // width)):
            a, b = max(start, first * width), min(stop, last * width)
            whole = (a, b) == (first * width, last * width)
            target = out[a - start : b - start] if whole else np.empty((last - first) * width, "u1")
            good = self._store(first, last, target) and good
            if not whole:
                out[a - start : b - start] = target[a - first * width : b - first * width]
        return good

    def _store(self, first: int, last: int, out: Raw) -> bool:
        """Rows `first` to `last`, rounded once; in one pass where that is compiled."""
        dtype, place = self.spec.dtype, out.view(self.spec.dtype.storage)
        base = None if self._others or not isinstance(self._base, Rows) else self._base
        stored = None if base is None else base.stored(first, last)
        if base is not None and stored is not None and self._left is not None:
            assert self._right is not None
            with np.errstate(over="ignore", invalid="ignore"):
                change = self._left[first:last] @ self._right
            types = {"dtype": base.spec.dtype.value, "out_dtype": dtype.value}
            done = compiled.add(stored, self._share, change.reshape(-1), place, **types)
            if done is not None:
                return done
        place[:] = narrow(self.block(first, last), dtype.value).reshape(-1)
        return finite(place, dtype.value)

    def _blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK // max(1, self.columns))
        for at in range(first // step * step, last, step):
            yield at, min(at + step, self.rows)

    def block(self, first: int, last: int) -> F64:
        """Rows `first` to `last` in float64."""
        with np.errstate(over="ignore", invalid="ignore"):
            total = self._linear(first, last)
            for part in self._others:
                made = part.coefficient * self._one(part, first, last)
                total = made if total is None else total + made
        assert total is not None
        return total

    def _linear(self, first: int, last: int) -> F64 | None:
        if self._left is None and self._share == 0 and self._others:
            return None
        base = self._base(first, last)
        total = base if self._share == 1 else base * self._share
        if self._left is None or self._right is None:
            return total
        made: F64 = self._left[first:last] @ self._right
        made += total
        return made

    def _one(self, part: Part, first: int, last: int) -> F64:
        read = self._base if part.start is None else part.start
        value = read(first, last)
        if part.left is not None and part.right is not None:
            value = value + part.left[first:last] @ part.right
        if part.magnitude is None:
            return value
        if part.is_flipped:
            return value * self._column_factors(part)
        norm = np.sqrt(np.einsum("ij,ij->i", value, value))
        scaled: F64 = value * (part.magnitude[first:last] / norm)[:, None]
        return scaled

    def _column_factors(self, part: Part) -> F64:
        known = self._factors_of_columns
        if id(part) not in known:
            plain = Part(1.0, part.start, part.left, part.right)
            square = np.zeros(self.columns)
            for first, last in self._blocks(0, self.rows):
                value = self._one(plain, first, last)
                square += np.einsum("ij,ij->j", value, value)
            assert part.magnitude is not None
            known[id(part)] = part.magnitude / np.sqrt(square)
        return known[id(part)]

    @cached_property
    def _factors_of_columns(self) -> dict[int, F64]:
        return {}


def matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    """Rows and columns of a tensor as the matrix that updates see."""
    if len(spec.shape) < 2:
        return 1, spec.numel
    return spec.shape[0], spec.numel // max(1, spec.shape[0])


class Rows:
    """Rows of a tensor, as a matrix in float64 or as they are stored.

    Args:
        checkpoint: holds it.
        name: of the tensor.
        change: puts other values into rows `first` to `last`, in place.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        change: Callable[[int, int, F64], None] | None = None,
    ) -> None:
        self.spec = checkpoint[name]
        _, self._columns = matrix_shape(self.spec)
        self._width = self._columns * self.spec.dtype.storage.itemsize
        self._read, self._change = checkpoint.reader(name), change

    def stored(self, first: int, last: int) -> Array | None:
        """The rows in their type, flat; None where other values take the place of some."""
        if self._change is not None:
            return None
        raw = self._read(first * self._width, last * self._width)
        return raw.view(self.spec.dtype.storage)

    def __call__(self, first: int, last: int) -> F64:
        """The rows in float64, (last − first, columns)."""
        raw = self._read(first * self._width, last * self._width)
        value = widen(raw.view(self.spec.dtype.storage), self.spec.dtype.value)
        value = value.reshape(-1, self._columns)
        if self._change is not None:
            value = value.copy()
            self._change(first, last, value)
        return value
