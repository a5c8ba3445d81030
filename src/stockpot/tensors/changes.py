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
from stockpot.tensors.trim import NO_TRIM, Merging, Stored, Term, Trim

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


def merge(
    terms: Sequence[Term], base: Stored, how: Merging, tie: Callable[[], int], out: Stored
) -> None:
    """Put `base` + what is made of `terms` into `out`, rounded once.

    Zeros have no sign: they do not count in an election, and where all are zero the result is 0.

    Args:
        terms: at least one; blocks of one length.
        base: from which they are changes.
        how: they are merged.
        tie: gives the sign, 1 or −1, of places where terms that are not all zero cancel out. It is
            called only if there is one.
        out: takes the result; contiguous.

    Raises:
        Unrepresentable: a change is NaN or infinite, whether it is kept or not, or a result is not
            finite in the type of `out`.

    >>> base, out = Stored(np.zeros(2), "F64"), Stored(np.empty(2), "F64")
    >>> values = [np.array([4.0, 1]), np.array([-1.0, 2])]
    >>> terms = [Term(Stored(one, "F64"), NO_TRIM, 1.0) for one in values]
    >>> merge(terms, base, Merging(weights=[1, 1], normalise=True), lambda: 1, out)
    >>> out.block
    array([4. , 1.5])
    """
    try:
        done = _merge(terms, base, how, 0, out)
    except compiled.Undecided:
        sign = tie()
        if sign not in (1, -1):
            raise ValueError(f"the sign of ties is {sign}; expected 1 or -1") from None
        done = _merge(terms, base, how, sign, out)
    if not done:
        raise Unrepresentable(None)


def _merge(terms: Sequence[Term], base: Stored, how: Merging, tie: int, out: Stored) -> bool:
    """Whether all of it is finite; see `compiled.merge`."""
    done = compiled.merge(terms, base, how, tie, out)
    if done is not None:
        return done
    changes = [change(value, base, trim, factor=factor) for value, trim, factor in terms]
    if how.least_variance is not None:
        chosen = variance(changes) >= how.least_variance
        changes = [np.where(chosen, one, 0.0) for one in changes]
    with np.errstate(invalid="ignore", over="ignore"):
        merged = elected(changes, how, tie) if how.elect else sum_of(changes) / how.divisor
        merged *= how.scale
    add_change(base, merged, out)
    return True


def elected(terms: Sequence[_F64], how: Merging, tie: int) -> _F64:
    """The sum, or the weighted mean, of those terms that have the sign of the sum of all: (n,).

    Raises:
        Undecided: terms cancel out and `tie` is 0.

    >>> terms = [np.array([4.0, 1]), np.array([-1.0, 2])]
    >>> elected(terms, Merging(weights=[1, 1], normalise=True), 1)
    array([4. , 1.5])
    """
    # Products with masks rather than np.where, which takes three times as long.
    total = sum_of(terms)
    up, down = total > 0, total < 0
    decided = up | down
    if tie == 0 and any(((term != 0) & ~decided).any() for term in terms):
        raise compiled.Undecided
    favoured = up if tie > 0 else down
    favoured |= ~decided
    merged, share = np.zeros_like(total), np.zeros_like(total)
    for term, weight in zip(terms, how.weights, strict=True):
        agree = ((term > 0) & up) | ((term < 0) & down)
        merged += (term * weight if how.weigh else term) * agree
        share += agree * weight
    share[share == 0] = 1.0
    merged /= share if how.normalise else 1.0
    return merged


def variance(terms: Sequence[_F64]) -> _F64:
    """The variance of each element over the terms, about their mean: (n,).

    >>> variance([np.array([1.0, 2]), np.array([3.0, 2])])
    array([1., 0.])
    """
    mean = sum_of(terms)
    mean /= len(terms)
    out = sum_of([(term - mean) ** 2 for term in terms])
    out /= len(terms)
    return out


def variances(values: Sequence[Stored], base: Stored) -> _F64:
    """The variance of the changes of each element: (n,). NaN and infinity count as no change."""
    found = compiled.variances(values, base)
    return variance([finite_change(one, base) for one in values]) if found is None else found


def squares(values: Sequence[Stored], base: Stored, least: float) -> _F64:
    """The squares of the changes of those elements whose variance is `least` or more: (k, m)."""
    found = compiled.squares(values, base, least)
    if found is None:
        changes = np.array([finite_change(one, base) for one in values])
        found = changes[:, variance(list(changes)) >= least] ** 2
    return found


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


def by_rank(value: Stored, base: Stored, values: _F64) -> _F64:
    """For each change the one of `values` at the rank of its magnitude: (rows, len(values)).

    Ranks are those in rows as long as `values`; 0 is the least, and equal ones have the order of
    the row. NaN and infinity count as 0.

    >>> value, base = Stored(np.array([1.0, -3, 2]), "F64"), Stored(np.zeros(3), "F64")
    >>> by_rank(value, base, np.array([0.0, 10, 20]))
    array([[ 0., 20., 10.]])
    """
    found = compiled.by_rank(value, base, values)
    if found is None:
        sizes_ = np.abs(finite_change(value, base)).reshape(-1, len(values))
        order = np.argsort(sizes_, axis=1, kind="stable")
        found = np.empty(order.shape)
        np.put_along_axis(found, order, values[None, :], axis=1)
    return found


def count_digits(numbers: _F64, prefix: int, shift: int) -> npt.NDArray[np.int64]:
    """`count_sizes` of numbers ≥ 0."""
    found = compiled.count(numbers, prefix, shift)
    if found is not None:
        return found
    digits = beginning_with(numbers, prefix, shift + DIGIT_BITS) >> np.uint64(shift)
    digits &= np.uint64((1 << DIGIT_BITS) - 1)
    return np.bincount(digits.astype(np.intp), minlength=1 << DIGIT_BITS)


def beginning_with(numbers: _F64, prefix: int, shift: int) -> _U64:
    """The bits of those numbers ≥ 0 that begin with `prefix`, above `shift`."""
    bits = numbers.ravel().view(np.uint64)
    if shift == 64:
        return bits
    found = compiled.pick(numbers, prefix, shift)
    return bits[(bits >> np.uint64(shift)) == np.uint64(prefix)] if found is None else found
