"""Order statistics of more numbers than memory holds, and random bits that need no order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

_F64 = npt.NDArray[np.float64]

HELD = 1 << 22
"""Numbers that are held at a time, at most; of more, all are read again."""
_DIGIT = 16
_FEW = 1 << 18


def largest(read: Callable[[], Iterable[_F64]], n: int, ranks: Sequence[int]) -> list[float]:
    """The numbers at `ranks` (1 is the largest) of the `n` numbers that `read` gives, exactly.

    Up to four million are sorted in memory. Of more, a histogram of the leading sixteen bits says
    among which the answer is, and they are read again: the bits of floating-point numbers that are
    not negative are in the order of the numbers.

    >>> largest(lambda: [np.array([3.0, 1.0]), np.array([2.0])], 3, [1, 3])
    [3.0, 1.0]

    Args:
        read: blocks of numbers ≥ 0, the same at every call.
        n: how many they are.
        ranks: from 1 to `n`.
    """
    if n > HELD:
        return [_by_digits(read, rank) for rank in ranks]
    values = np.concatenate([block.ravel() for block in read()])
    if n > _FEW:  # counting takes half of the time of a partition
        return [_by_digits(lambda: [values], rank) for rank in ranks]
    places = [n - rank for rank in ranks]
    return [float(values_at) for values_at in np.partition(values, places)[places]]


def _by_digits(read: Callable[[], Iterable[_F64]], rank: int) -> float:
    prefix = 0
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, np.int64)
        for block in read():
            digits = _below(block, prefix, shift + _DIGIT) >> np.uint64(shift)
            digits &= np.uint64((1 << _DIGIT) - 1)
            counts += np.bincount(digits.astype(np.intp), minlength=counts.size)
        from_the_top = np.cumsum(counts[::-1])
        at = int(np.searchsorted(from_the_top, rank))
        rank -= int(from_the_top[at - 1]) if at else 0
        prefix = prefix << _DIGIT | (counts.size - 1 - at)
        if counts[counts.size - 1 - at] <= HELD and shift:
            left = np.concatenate([_below(block, prefix, shift) for block in read()])
            return float(np.partition(left, left.size - rank)[[left.size - rank]].view(float)[0])
    return float(np.array([prefix], np.uint64).view(np.float64)[0])


def _below(block: _F64, prefix: int, shift: int) -> npt.NDArray[np.uint64]:
    """The bits of those numbers that begin with `prefix`, above `shift`."""
    bits = block.ravel().view(np.uint64)
    return bits if shift == 64 else bits[(bits >> np.uint64(shift)) == np.uint64(prefix)]


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
    block, skip = divmod(start, 8)  # four words of two halves each
    words = np.random.Philox(
        key=np.array([number & mask, number >> 64], np.uint64), counter=block
    ).random_raw((skip + n + 1) // 2)
    halves = words.astype("<u8").view("<u4")[skip : skip + n]
    least = np.rint(np.asarray(probability) * 2.0**32)
    return np.asarray(halves < least)
