"""Means of bfloat16 blocks by integer arithmetic, where the numbers are close together.

The bits of bfloat16 numbers of one sign and one binade are evenly spaced integers, so the mean of
the numbers is the mean of the bits: Σ(bᵢ − min b)/k, rounded to nearest with ties to even, over
min b. That takes three operations on 16-bit lanes for each ingredient, a fraction of what any
floating sum takes, and is exact. Fine-tuned models differ by little, so that few of their weights
lie in different binades; those are made again from float64 sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stockpot.arithmetic.packed import PackedScratch, true_places

__all__ = ["MOST_APART", "mean_of_bits"]

_U16 = npt.NDArray[np.uint16]

_BINADE = np.uint16(0x80)
_MOST_TERMS = 256  # their differences from the smallest fit 16 bits
MOST_APART = 0.08
"""Above this share of numbers in different binades, floating sums are faster."""


def mean_of_bits(
    blocks: Sequence[_U16], out: _U16, scratch: PackedScratch
) -> npt.NDArray[np.intp] | None:
    """Put the means of bfloat16 bits into `out`, and say which have to be made from floating sums.

    Args:
        blocks: at least two, of one length that is at most that of the scratch.
        out: takes the bits.
        scratch: arrays to work in.

    Returns:
        The places whose numbers are not in one binade; None when those are many, or when a result
        is infinite or not a number.
    """
    n, k = out.size, len(blocks)
    if k > _MOST_TERMS:
        return None
    largest, smallest = scratch.largest[:n], scratch.smallest[:n]
    np.add(blocks[0], blocks[1], out=out)  # sums of bits wrap around, and so do their differences
    np.maximum(blocks[0], blocks[1], out=largest)
    np.minimum(blocks[0], blocks[1], out=smallest)
    for block in blocks[2:]:
        np.add(out, block, out=out)
        np.maximum(largest, block, out=largest)
        np.minimum(smallest, block, out=smallest)
    apart = scratch.doubt[:n]
    np.bitwise_xor(largest, smallest, out=largest)
    np.greater_equal(largest, _BINADE, out=apart)
    scratch.doubt[n : n + 7] = False
    places = true_places(scratch.doubt[: -(-n // 8) * 8])
    if places.size > MOST_APART * n:
        return None
    above = largest
    np.multiply(smallest, np.uint16(k), out=above)
    np.subtract(out, above, out=above)
    np.add(above, np.uint16(k // 2), out=above)
    np.floor_divide(above, np.uint16(k), out=out)
    if k % 2 == 0:
        _to_even(above, smallest, out, k, scratch)
    np.add(out, smallest, out=out)
    # Infinities and NaN of all blocks at one place are a binade like others.
    if out.max(initial=0) >= 0xFF80 or out.view(np.int16).max(initial=0) >= 0x7F80:
        return None
    return places


def _to_even(above: _U16, smallest: _U16, steps: _U16, k: int, scratch: PackedScratch) -> None:
    """Take back the step up of ties whose result would be odd."""
    n = steps.size
    words = scratch.words[:n]
    np.multiply(steps, np.uint16(k), out=words)
    tie = scratch.cancelled[:n]
    np.equal(words, above, out=tie)
    np.add(steps, smallest, out=words)
    np.bitwise_and(words, np.uint16(1), out=words)
    np.multiply(words, tie, out=words)
    np.subtract(steps, words, out=steps)
