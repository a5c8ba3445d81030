"""Order statistics of more numbers than memory holds, and random bits that need no order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.tensors import compiled
from stockpot.tensors.changes import DIGIT_BITS, beginning_with, count_digits

_F64 = npt.NDArray[np.float64]

HELD = 1 << 22
"""Numbers that are held at a time, at most; of more, all are read again."""
_FEW = 1 << 18


class Numbers(Protocol):
    """Numbers ≥ 0 that are read again for each pass over them."""

    n: int

    def count(self, prefix: int, shift: int) -> npt.NDArray[np.int64]:
        """See `tensors.changes.count_sizes`."""

    def bits(self, prefix: int = 0, shift: int = 64) -> npt.NDArray[np.uint64]:
        """See `tensors.changes.sizes`."""


class Blocks(Numbers):
    """Numbers that come in blocks; up to four million are held.

    Args:
        read: blocks of numbers ≥ 0, the same at every call.
        n: how many they are.
    """

    def __init__(self, read: Callable[[], Iterable[_F64]], n: int) -> None:
        self.n = n
        self._read = read
        if 0 < n <= HELD:
            held = [np.concatenate([block.ravel() for block in read()])]
            self._read = lambda: held

    def count(self, prefix: int, shift: int) -> npt.NDArray[np.int64]:
        """See `Numbers.count`."""
        counts = np.zeros(1 << DIGIT_BITS, np.int64)
        for block in self._read():
            counts += count_digits(block, prefix, shift)
        return counts

    def bits(self, prefix: int = 0, shift: int = 64) -> npt.NDArray[np.uint64]:
        """See `Numbers.bits`."""
        return np.concatenate([beginning_with(block, prefix, shift) for block in self._read()])


def largest(numbers: Numbers, ranks: Sequence[int]) -> list[float]:
    """The numbers at `ranks` (1 is the largest), exactly.

    A few are sorted. Of more, a histogram of the leading sixteen bits says among which the answer
    is, and they are read again.

    >>> largest(Blocks(lambda: [np.array([3.0, 1.0]), np.array([2.0])], 3), [1, 3])
    [3.0, 1.0]

    Args:
        numbers: of which.
        ranks: from 1 to `numbers.n`.
    """
    if numbers.n <= _FEW:
        places = [numbers.n - rank for rank in ranks]
        return np.partition(numbers.bits(), places)[places].view(np.float64).tolist()  # type: ignore[no-any-return]
    first = numbers.count(0, 64 - DIGIT_BITS)
    return [_by_digits(numbers, rank, first) for rank in ranks]


def _by_digits(numbers: Numbers, rank: int, counts: npt.NDArray[np.int64]) -> float:
    prefix = 0
    for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
        if shift < 64 - DIGIT_BITS:
            counts = numbers.count(prefix, shift)
        from_the_top = np.cumsum(counts[::-1])
        at = int(np.searchsorted(from_the_top, rank))
        rank -= int(from_the_top[at - 1]) if at else 0
        digit = counts.size - 1 - at
        prefix = prefix << DIGIT_BITS | digit
        if counts[digit] <= HELD and shift:
            left = numbers.bits(prefix, shift)
            return float(np.partition(left, left.size - rank)[[left.size - rank]].view(float)[0])
    return float(np.array([prefix], np.uint64).view(np.float64)[0])


def kept_at_random(
    key: str, start: int, n: int, probability: float | _F64
) -> npt.NDArray[np.bool_]:
    """For each of the items `start` to `start + n`, True with its `probability`, to 2⁻³².

    A number depends on `key` and on its own index, and on nothing else: neither on the order in
    which blocks are made, nor on threads. It is the index-th half of a word of Philox4x64 (Salmon
    et al. 2011), whose key is the XXH3-128 of `key`.

    >>> whole = kept_at_random("a", 0, 100, 0.5)
    >>> bool((whole[37:60] == kept_at_random("a", 37, 23, 0.5)).all())
    True
    """
    number = xxhash.xxh3_128_intdigest(key.encode())
    mask = (1 << 64) - 1
    drawn = compiled.kept_at_random((number & mask, number >> 64), start, n, probability)
    if drawn is not None:
        return drawn
    block, skip = divmod(start, 8)  # four words of two halves each
    words = np.random.Philox(
        key=np.array([number & mask, number >> 64], np.uint64), counter=block
    ).random_raw((skip + n + 1) // 2)
    halves = words.astype("<u8").view("<u4")[skip : skip + n]
    return np.asarray(halves < np.rint(np.asarray(probability) * 2.0**32))
