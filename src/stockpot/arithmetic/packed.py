"""Weighted sums of bfloat16 blocks at the speed of memory, with the bits of float64 sums.

A block is seen as 32-bit words, each holding two numbers: shifted left, the word is the float32 of
one of them, and masked, of the other. So the sums run in float32 at no cost for conversion, and the
few results that float32 might have rounded to the wrong side are found and made again in float64:

*Near the middle of two bfloat16 numbers.* With u = 2⁻²⁴ and no term going through more than d
additions, the computed mean m differs from the exact one by at most (d+2)·u·Σ|cᵢxᵢ|, that is by
(d+2)·R + 2 units in the last place of m, where R = Σ|cᵢxᵢ| / |m|. Only results whose low 16 bits
lie within as many of 0x8000 are in doubt. Summing in about √k groups keeps d small.

*Where terms cancel*, R is large. Σ|cᵢxᵢ| is Σcᵢxᵢ and twice the negative terms, so it is enough to
know N, the largest magnitude among the negative ones: the maximum of the bits as unsigned numbers.
Where N is at most b binades above |m|, R ≤ 1 + 2.01·2ᵇ·Σ|cᵢ|; anywhere else the result is in doubt.
More binades mean fewer doubts of this kind and more of the other, so b follows the data.

*Two terms, halved,* are never in doubt: their float32 sum is exact unless one is less than 2⁻¹⁵ of
the other, and then it is nowhere near a middle.

*Infinities and NaN* wrap around in that comparison and so are in doubt, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["PackedScratch", "mix_packed", "true_places"]

_U16 = npt.NDArray[np.uint16]
_U32 = npt.NDArray[np.uint32]

_HIGH = np.uint32(0xFFFF0000)
_LOW = np.uint32(0xFFFF)
_HALF = np.uint32(16)
_SIGN = np.uint16(0x8000)
_BINADE = 0x80  # from a number to its double, in bits
_INFINITE = 0xFF80  # with the sign bit set
_MOST_BINADES = 8
_GROUPED = 9  # from as many terms they are summed in groups
_MOST_DOUBTS = 1 / 8
"""Above this share of doubtful results, all are made in float64: it is faster."""


class PackedScratch:
    """Arrays for blocks of up to `n` numbers; kept between calls because fresh pages are slow.

    Not to be shared between threads.
    """

    def __init__(self, n: int) -> None:
        words = (n + 1) // 2
        self.low = np.empty(words, np.float32)
        self.high = np.empty(words, np.float32)
        self.group_low = np.empty(words, np.float32)
        self.group_high = np.empty(words, np.float32)
        self.term = np.empty(words, np.uint32)
        self.words = np.empty(2 * words, np.uint16)
        self.smallest = np.empty(2 * words, np.uint16)
        self.largest = np.empty(2 * words, np.uint16)
        # A multiple of 8, so that it can be looked through by the eight.
        self.doubt = np.zeros(-(-2 * words // 8) * 8, np.bool_)
        self.cancelled = np.empty(2 * words, np.bool_)
        self.binades = 3
        self.skip_bits = 0


def mix_packed(
    blocks: Sequence[_U16],
    weights: Sequence[float] | None,
    out: _U16,
    scratch: PackedScratch,
) -> npt.NDArray[np.intp] | None:
    """Put Σ cᵢ·xᵢ into `out`, and say which of its places have to be made again in float64.

    Args:
        blocks: bfloat16 bits, of one even length, at addresses that are multiples of 4.
        weights: a number for each block; None for the mean.
        out: takes the bits.
        scratch: of at least that length.

    Returns:
        The doubtful places, among them all that are not finite; None when there are so many that
        all should be made again.
    """
    if weights is None and len(blocks) == 2:
        return _halve(blocks, out, scratch)
    n, k = out.size, len(blocks)
    size = k if k < _GROUPED else math.isqrt(k)
    depth = size - 1 + -(-k // size) - 1
    spread = 1.0 if weights is None else math.fsum(map(abs, weights))
    binades = scratch.binades
    window = math.ceil((depth + 2) * (1 + 2.01 * 2**binades * spread)) + 3
    if window >= 1 << 13:
        scratch.binades = max(1, binades - 1)
        return None
    for start in range(0, k, size):
        part = slice(start, start + size)
        _sum(blocks[part], None if weights is None else weights[part], scratch, n, first=start == 0)
    low, high = scratch.low[: n // 2], scratch.high[: n // 2]
    if weights is None:
        inverse = np.float32(1 / k)
        np.multiply(low, inverse, out=low)
        np.multiply(high, inverse, out=high)
    _round(out, window, scratch)
    places = true_places(scratch.doubt[: -(-n // 8) * 8])
    near_middle = 2 * window / 65536 * n
    if places.size > 2 * near_middle + 16:
        scratch.binades = min(binades + 1, _MOST_BINADES)
    elif places.size < 1.25 * near_middle:
        scratch.binades = max(binades - 1, 1)
    return None if places.size > _MOST_DOUBTS * n else places


def _halve(
    blocks: Sequence[_U16], out: _U16, scratch: PackedScratch
) -> npt.NDArray[np.intp] | None:
    n = out.size
    _sum(blocks, None, scratch, n, first=True)
    low, high, one = (a[: n // 2] for a in (scratch.low, scratch.high, scratch.term))
    for total in (low, high):
        np.multiply(total, np.float32(0.5), out=total)
        bits = total.view(np.uint32)
        np.right_shift(bits, _HALF, out=one)
        np.bitwise_and(one, np.uint32(1), out=one)
        np.add(one, np.uint32(0x7FFF), out=one)
        np.add(bits, one, out=bits)
    _join(low.view(np.uint32), high.view(np.uint32), out)
    magnitude = one.view(np.uint16)
    np.bitwise_or(out, _SIGN, out=magnitude)
    # A sum may leave the range of float32 although its half is in it.
    return None if magnitude.max(initial=0) >= _INFINITE else np.empty(0, np.intp)


def _sum(
    blocks: Sequence[_U16],
    weights: Sequence[float] | None,
    scratch: PackedScratch,
    n: int,
    *,
    first: bool,
) -> None:
    """Add the terms up, apart from those that came before, then to them.

    In the same turn, while a block is in the cache, take unsigned maxima of the bits of the terms:
    with the sign bit, that is the largest negative one.
    """
    words = n // 2
    totals = (scratch.low, scratch.high) if first else (scratch.group_low, scratch.group_high)
    term, largest = scratch.term[:words], scratch.largest[:n]
    for i, block in enumerate(blocks):
        weight = None if weights is None else np.float32(weights[i])
        for total, high in zip(totals, (False, True), strict=True):
            into = total[:words].view(np.uint32) if i == 0 else term
            if high:
                np.bitwise_and(block.view(np.uint32), _HIGH, out=into)
            else:
                np.left_shift(block.view(np.uint32), _HALF, out=into)
            number = into.view(np.float32)
            if weight is not None:
                np.multiply(number, weight, out=number)
            if i > 0:
                np.add(total[:words], number, out=total[:words])
        signed = block if weight is None or weight >= 0 else block ^ _SIGN
        if first and i == 0:
            np.copyto(largest, signed)
        else:
            np.maximum(largest, signed, out=largest)
    if not first:
        np.add(scratch.low[:words], scratch.group_low[:words], out=scratch.low[:words])
        np.add(scratch.high[:words], scratch.group_high[:words], out=scratch.high[:words])


def _round(out: _U16, window: int, scratch: PackedScratch) -> None:
    """Round the means in `scratch` to `out`, and say in `scratch.doubt` where that is in doubt."""
    n = out.size
    low, high = (a[: n // 2].view(np.uint32) for a in (scratch.low, scratch.high))
    doubt, cancelled = scratch.doubt[:n], scratch.cancelled[:n]
    # Rounded up at the middle: ties are in doubt anyway. What a window more rounds up is, too.
    offset = np.uint32(0x8000 + window)
    np.add(low, offset, out=low)
    np.add(high, offset, out=high)
    rest = scratch.term[: n // 2]
    np.left_shift(high, _HALF, out=rest)
    np.bitwise_and(low, _LOW, out=scratch.group_low[: n // 2].view(np.uint32))
    np.bitwise_or(rest, scratch.group_low[: n // 2].view(np.uint32), out=rest)
    np.less_equal(rest.view(np.uint16), np.uint16(2 * window), out=doubt)
    _join(low, high, out)
    magnitude = rest.view(np.uint16)
    np.bitwise_or(out, _SIGN, out=magnitude)
    np.add(magnitude, np.uint16(scratch.binades * _BINADE), out=magnitude)
    np.greater(scratch.largest[:n], magnitude, out=cancelled)
    np.logical_or(doubt, cancelled, out=doubt)
    scratch.doubt[n : n + 7] = False


def _join(low: _U32, high: _U32, out: _U16) -> None:
    """The upper halves of the words, which are spoiled, as one array."""
    np.right_shift(low, _HALF, out=low)
    np.bitwise_and(high, _HIGH, out=high)
    np.bitwise_or(low, high, out=out.view(np.uint32))


def true_places(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """`np.flatnonzero`, faster for few flags among many; a multiple of 8 of them."""
    if np.count_nonzero(flags) > flags.size // 100:
        return np.flatnonzero(flags)
    eights = np.flatnonzero(flags.view(np.uint64) != 0)
    within = np.flatnonzero(flags.reshape(-1, 8)[eights])
    places: npt.NDArray[np.intp] = eights[within >> 3] * 8 + (within & 7)
    return places
