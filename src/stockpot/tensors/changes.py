"""Changes, blocks of weights minus those of a base: trimmed, merged by sign, and counted by size.

The arithmetic is float64. Where the package was installed with a C compiler, one compiled pass does
each, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stockpot.tensors import compiled
from stockpot.tensors.rounding import finite, narrow, widen
from stockpot.tensors.sums import Unrepresentable
from stockpot.tensors.trim import NO_TRIM, Stored, Trim

_F64 = npt.NDArray[np.float64]
_U64 = npt.NDArray[np.uint64]

DIGIT_BITS = 16
"""Bits of a digit, by which sizes are counted."""
_TILE = 512


def change(
    value: Stored,
    base: Stored,
    trim: Trim = NO_TRIM,
    *,
    factor: float = 1.0,
    out: _F64 | None = None,
) -> _F64:
    """`value` − `base`, trimmed, times `factor`: (n,), in `out` if it is given.

    Raises:
        Unrepresentable: a change is NaN or infinite, whether it is kept or not.

    >>> base, value = Stored(np.zeros(3), "F64"), Stored(np.array([1.0, -3, 2]), "F64")
    >>> change(value, base, Trim(least=2), factor=0.5)
    array([ 0. , -1.5,  1. ])
    """
    out = np.empty(value.block.size) if out is None else out
    done = compiled.change(value, base, trim, factor, out)
    if done is None:
        found = difference(value, base)
        if not finite(found, "F64"):
            raise Unrepresentable(None)
        return np.multiply(trimmed(found, trim), factor, out=out)
    if not done:
        raise Unrepresentable(None)
    return out


def difference(value: Stored, base: Stored) -> _F64:
    """`value` − `base` in float64, finite or not: (n,)."""
    with np.errstate(invalid="ignore", over="ignore"):
        return widen(*value) - widen(*base)


def finite_change(value: Stored, base: Stored, trim: Trim = NO_TRIM) -> _F64:
    """`change`, where NaN and infinity count as no change."""
    try:
        return change(value, base, trim)
    except Unrepresentable:
        found = difference(value, base)
        return trimmed(np.where(np.isfinite(found), found, 0.0), trim)


def trimmed(found: _F64, trim: Trim) -> _F64:
    """What `trim` keeps of changes, divided by its share, and +0.0 elsewhere: (n,)."""
    kept = trim.kept
    if kept is None or trim.least > 0 or trim.most < math.inf:
        size = np.abs(found)
        inside = (size >= trim.least) & (size <= trim.most)
        kept = inside if kept is None else inside & kept
    if isinstance(trim.share, float) and trim.share == 1.0:
        return np.where(kept, found, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(kept, found / trim.share, 0.0)


def l1_norms(value: Stored, base: Stored, trim: Trim) -> _F64:
    """Sums of the magnitudes of all changes, and of those that `trim` keeps, undivided: (2,).

    NaN and infinity count as no change. The order is stated so that the bits are the same
    everywhere: tiles of 512 one after the other; in a tile, eight lanes of every eighth number one
    after the other; and the lanes in pairs.
    """
    found = compiled.l1_norms(value, base, trim)
    if found is None:
        size = np.abs(finite_change(value, base))
        kept = trimmed(size, replace(trim, share=1.0))
        found = np.array([_sum_by_tiles(one) for one in (size, kept)])
    return found


def _sum_by_tiles(numbers: _F64) -> float:
    padded = np.zeros(-(-numbers.size // _TILE) * _TILE)
    padded[: numbers.size] = numbers
    lanes = np.add.accumulate(padded.reshape(-1, _TILE // 8, 8), axis=1)[:, -1]
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    return float(np.add.accumulate(lanes[:, 0])[-1]) if numbers.size else 0.0


def elected(
    terms: Sequence[_F64],
    weights: Sequence[float],
    tie: Callable[[], int],
    *,
    normalise: bool,
    weigh: bool = False,
    out: _F64 | None = None,
) -> _F64:
    """The sum, or the weighted mean, of those terms that have the sign of the sum of all: (n,).

    Zeros have no sign: they do not count, and where all are zero the result is 0.

    Args:
        terms: wᵢ·τᵢ, or τᵢ with `weigh`: contiguous, (n,) each.
        weights: wᵢ.
        tie: gives the sign, 1 or −1, of places where terms that are not all zero cancel out. It is
            called only if there is one.
        normalise: divide by the weights of the terms that are summed.
        weigh: multiply with the weights what is summed, once its sign is elected.
        out: takes the result, if given; none of the terms.

    >>> elected([np.array([4.0, 1]), np.array([-1.0, 2])], [1, 1], lambda: 1, normalise=True)
    array([4. , 1.5])
    """
    out = np.empty(terms[0].size) if out is None else out
    how = {"normalise": normalise, "weigh": weigh}
    merged = _elected(terms, weights, 0, out, **how)
    if merged is None:
        merged = _elected(terms, weights, tie(), out, **how)
    if merged is None:
        raise ValueError("the sign of ties is 0; expected 1 or -1")
    return merged


def _elected(
    terms: Sequence[_F64], weights: Sequence[float], tie: int, out: _F64, *,
    normalise: bool, weigh: bool,
) -> _F64 | None:  # fmt: skip
    """None where terms cancel out and `tie` is 0."""
    done = compiled.elected(terms, weights, tie, out, normalise=normalise, weigh=weigh)
    if done is not None:
        return out if done else None
    # Products with masks rather than np.where, which takes three times as long.
    total = sum_of(terms)
    up, down = total > 0, total < 0
    decided = up | down
    if tie == 0 and any(((term != 0) & ~decided).any() for term in terms):
        return None
    favoured = up if tie > 0 else down
    favoured |= ~decided
    merged, share = np.zeros_like(total), np.zeros_like(total)
    for term, weight in zip(terms, weights, strict=True):
        agree = ((term > 0) & up) | ((term < 0) & down)
        merged += (term * weight if weigh else term) * agree
        share += agree * weight
    share[share == 0] = 1.0
    return np.divide(merged, share if normalise else 1.0, out=out)


def variance(terms: Sequence[_F64]) -> _F64:
    """The variance of each element over the terms, about their mean: (n,).

    >>> variance([np.array([1.0, 2]), np.array([3.0, 2])])
    array([1., 0.])
    """
    out = np.empty(terms[0].size)
    if not compiled.variance(terms, out):
        mean = sum_of(terms)
        mean /= len(terms)
        out[:] = sum_of([(term - mean) ** 2 for term in terms])
        out /= len(terms)
    return out


def sum_of(terms: Sequence[_F64], out: _F64 | None = None) -> _F64:
    """Their sum, in order, without a copy of all of them side by side; in `out` if it is given."""
    total = np.empty_like(terms[0]) if out is None else out
    total[:] = terms[0]
    for term in terms[1:]:
        total += term
    return total


def add_change(base: Stored, change: _F64, out: Stored) -> None:
    """Put `base` + `change` into `out`, rounded once.

    Raises:
        Unrepresentable: a result is not finite in the type of `out`.
    """
    block, dtype = base
    done = compiled.add(block, 1.0, change, out.block, dtype=dtype, out_dtype=out.dtype)
    if done is None:
        out.block[:] = narrow(widen(*base) + change, out.dtype)
        done = finite(out.block, out.dtype)
    if not done:
        raise Unrepresentable(None)


def count_sizes(value: Stored, base: Stored, prefix: int, shift: int) -> npt.NDArray[np.int64]:
    """Of the magnitudes of changes, how many there are of each digit above bit `shift`: (65536,).

    Those whose bits above the digit are not `prefix` are left out. The bits of floating-point
    numbers that are not negative are in the order of the numbers. NaN and infinity count as 0.
    """
    counts = compiled.count_sizes(value, base, prefix, shift)
    if counts is None:
        return count_digits(np.abs(finite_change(value, base)), prefix, shift)
    return counts


def sizes(value: Stored, base: Stored, prefix: int = 0, shift: int = 64) -> _U64:
    """The bits of those magnitudes of changes whose bits above `shift` are `prefix`; see above."""
    found = compiled.sizes(value, base, prefix, shift)
    if found is None:
        return beginning_with(np.abs(finite_change(value, base)), prefix, shift)
    return found


def gram(blocks: Sequence[Stored], origin: Stored | None = None) -> _F64:
    """Inner products (k, k) of blocks, or of what they are beyond `origin`, in float64.

    Summed in the order of `l1_norms`. What is not finite makes what it is part of not finite.

    >>> gram([Stored(np.array([1.0, 2]), "F64"), Stored(np.array([3.0, 0]), "F64")])
    array([[5., 3.],
           [3., 9.]])
    """
    found = compiled.gram(blocks, origin)
    if found is None:
        with np.errstate(invalid="ignore", over="ignore"):
            values = [widen(*one) if origin is None else difference(one, origin) for one in blocks]
            found = np.array([[_sum_by_tiles(a * b) for b in values] for a in values])
    return found


def ranks(value: Stored, base: Stored, width: int) -> _F64:
    """Ranks of the magnitudes of changes in rows of `width`: (rows, width).

    0 is the least; equal ones have the order of the row. NaN and infinity count as 0.

    >>> ranks(Stored(np.array([1.0, -3, 2]), "F64"), Stored(np.zeros(3), "F64"), 3)
    array([[0., 2., 1.]])
    """
    found = compiled.ranks(value, base, width)
    if found is None:
        order = np.argsort(
            np.abs(finite_change(value, base)).reshape(-1, width), axis=1, kind="stable"
        )
        found = np.empty(order.shape)
        np.put_along_axis(found, order, np.arange(width, dtype=np.float64)[None, :], axis=1)
    return found


def count_digits(numbers: _F64, prefix: int, shift: int) -> npt.NDArray[np.int64]:
    """`count_sizes` of numbers ≥ 0."""
    digits = beginning_with(numbers, prefix, shift + DIGIT_BITS) >> np.uint64(shift)
    digits &= np.uint64((1 << DIGIT_BITS) - 1)
    return np.bincount(digits.astype(np.intp), minlength=1 << DIGIT_BITS)


def beginning_with(numbers: _F64, prefix: int, shift: int) -> _U64:
    """The bits of those numbers ≥ 0 that begin with `prefix`, above `shift`."""
    bits = numbers.ravel().view(np.uint64)
    return bits if shift == 64 else bits[(bits >> np.uint64(shift)) == np.uint64(prefix)]
