"""Between the stored types and float64: widening is exact, narrowing rounds once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.tensors.spec import DType

Array = npt.NDArray[Any]
_F64 = npt.NDArray[np.float64]


def widen(block: Array, dtype: str) -> _F64:
    """The values of `block` as float64, exactly; a new array unless it is float64 already.

    >>> widen(np.array([0x3F80, 0xC000], np.uint16), "BF16")
    array([ 1., -2.])
    """
    if dtype == "BF16":
        block = (np.atleast_1d(block).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return block.astype(np.float64, copy=False)


def narrow(values: _F64, dtype: str, rest: _F64 | None = None) -> Array:
    """`values` (+ `rest`) rounded once, to nearest with ties to even, to the storage of `dtype`.

    Going through float32 would round twice: 1 + 2⁻⁸ + 2⁻⁴⁰ lies above the middle of two bfloat16
    numbers, and its float32 exactly on it. Too large values become infinite; see `finite`.

    Args:
        values: float64, any shape.
        dtype: F64, F32, F16 or BF16.
        rest: what the float64 `values` could not hold of the numbers meant, less than half a unit
            in the last place of each.

    >>> narrow(np.array([1 + 2**-8 + 2**-40, 1 + 2**-8]), "BF16")
    array([16257, 16256], dtype=uint16)
    """
    if dtype == "F64":
        return values.copy()
    if rest is not None:
        values = round_to_odd(values, rest)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype != "BF16":
            return values.astype(DType(dtype).storage)
        return _narrow_bf16(values)


def _narrow_bf16(values: _F64) -> npt.NDArray[np.uint16]:
    flat = np.ravel(values)
    single = flat.astype(np.float32)
    bits = single.view(np.uint32)
    # The step through float32 matters only where it lands on the middle of two bfloat16 numbers
    # and moved: there, say again on which side of the middle the value lies.
    moved = single != flat
    moved &= (bits & np.uint32(0xFFFF)) == 0x8000
    at = np.flatnonzero(moved)
    if at.size:
        beyond = np.abs(flat[at]) > np.abs(single[at].astype(np.float64))
        bits[at] += np.where(beyond, np.uint32(1), np.uint32(0xFFFFFFFF))
    nan = np.isnan(single)
    even = bits >> np.uint32(16)
    even &= np.uint32(1)
    even += np.uint32(0x7FFF)
    bits += even
    bits >>= np.uint32(16)
    rounded = bits.astype(np.uint16)
    if nan.any():
        # The carry could turn a NaN into a number.
        rounded[nan] = 0x7FC0
    return rounded.reshape(values.shape)


def round_to_odd(high: _F64, low: _F64) -> _F64:
    """A float64 that rounds to any narrower type as `high + low` does (Boldo and Melquiond, 2005).

    Where the sum is no float64, the neighbour with an odd last bit stands for all that lies between
    two even ones. `low` is less than half a unit in the last place of `high`.
    """
    even = (high.view(np.int64) & 1) == 0
    inexact = (low != 0) & even & np.isfinite(high)
    if not inexact.any():
        return high
    toward = np.where(low > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(high, toward), high)


def finite(block: Array, dtype: str) -> bool:
    """Whether no value of `block` is NaN or infinite."""
    if dtype == "BF16":
        return not bool(((block & np.uint16(0x7F80)) == 0x7F80).any())
    return bool(np.isfinite(block).all())


def nonzero(raw: npt.NDArray[np.uint8], dtype: DType) -> npt.NDArray[np.bool_]:
    """True where the elements in `raw` are neither +0.0 nor −0.0; NaN is not zero.

    >>> nonzero(np.array([1.0, -0.0, 0.0, np.nan], np.float32).view(np.uint8), DType.F32)
    array([ True, False, False,  True])
    """
    values = raw.view(dtype.storage)
    if dtype is DType.BF16:
        return np.asarray((values & np.uint16(0x7FFF)) != 0)
    return np.asarray(values != 0)
