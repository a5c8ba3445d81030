"""Σ cᵢ·θᵢ over blocks of several ingredients, rounded once to the output type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stockpot.arithmetic.binade import mean_of_bits
from stockpot.arithmetic.packed import PackedScratch, mix_packed
from stockpot.arithmetic.rounding import STORAGE, Array, finite, narrow, widen

__all__ = [
    "Scratch",
    "Unrepresentable",
    "is_uniform",
    "mix",
    "mix_elementwise",
    "two_product",
    "two_sum",
]

_F64 = npt.NDArray[np.float64]

_SPLITTER = 134217729.0  # 2²⁷ + 1: Veltkamp's split of a float64 into two halves of 26 bits
_SCALE = 2.0**-64
_TRY_AGAIN = 32
_PAIRS = 1 << 14
"""Numbers that are summed in pairs of float64 at a time; it makes a dozen arrays of them."""


class Unrepresentable(ArithmeticError):  # noqa: N818 — a finding, which the engine names and raises
    """A block has no finite mean: `index` is the first ingredient at fault, None for overflow."""

    def __init__(self, index: int | None) -> None:
        super().__init__(
            "the mean is too large for the output type"
            if index is None
            else f"block {index} holds NaN or infinity"
        )
        self.index = index


class Scratch:
    """Arrays that are used again from block to block, of up to `n` items each.

    Not to be shared between threads; nothing in it affects a result.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.total = np.empty(n, np.float64)
        self.term = np.empty(n, np.float64)
        self.single = np.empty(n, np.uint32)
        self.gathered = np.empty(n, np.uint16)
        self.packed = PackedScratch(n)


def mix(
    blocks: Sequence[Array],
    coefficients: Sequence[float],
    *,
    dtype: str,
    out_dtype: str,
    out: Array | None = None,
    scratch: Scratch | None = None,
) -> Array:
    """Σ cᵢ·xᵢ of equally long `blocks`, rounded once to `out_dtype`.

    Equal coefficients 1/k: the sum is divided once by k, so that k copies give the copy. Sums are
    float64 (double-double for float64 blocks), in the order given, and start from the first term,
    so that −0.0 survives. A block whose coefficient is exactly 0 is not looked at.

    Args:
        blocks: storage arrays of one dimension; BF16 as uint16.
        coefficients: one for each block.
        dtype: type of the blocks: F64, F32, F16 or BF16.
        out_dtype: type of the result.
        out: takes the result, if given, and is returned; storage of `out_dtype`.
        scratch: arrays to work in; it makes many blocks faster.

    Raises:
        Unrepresentable: a block holds NaN or infinity, or the result does not fit `out_dtype`.

    >>> mix([np.float32([1, 2]), np.float32([3, 5])], [0.5, 0.5], dtype="F32", out_dtype="F32")
    array([2. , 3.5], dtype=float32)
    """
    taking_part = [i for i, c in enumerate(coefficients) if c != 0]
    chosen = [blocks[i] for i in taking_part]
    weights = [coefficients[i] for i in taking_part]
    if not chosen:
        raise ValueError("there is nothing to sum: every coefficient is 0")
    n = chosen[0].size
    if out is None:
        out = np.empty(n, STORAGE[out_dtype])
    if scratch is None or scratch.n < n:
        scratch = Scratch(n)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if len(chosen) == 1 and weights[0] == 1.0 and dtype == out_dtype:
            np.copyto(out, chosen[0])
            all_finite = finite(out, out_dtype)
        elif dtype == out_dtype and dtype in ("BF16", "F16"):
            all_finite = _sixteen_bits(chosen, weights, dtype, out, scratch)
        else:
            _rounded(chosen, weights, dtype, out_dtype, out, scratch)
            all_finite = finite(out, out_dtype)
    if not all_finite:
        at_fault = (i for i in taking_part if not finite(blocks[i], dtype))
        raise Unrepresentable(next(at_fault, None))
    return out


def mix_elementwise(
    blocks: Sequence[Array],
    coefficients: Sequence[Array],
    *,
    dtype: str,
    coefficient_dtype: str,
    out_dtype: str,
) -> Array:
    """Σ cᵢ·xᵢ with a coefficient for every element: products and sum in float64, rounded once.

    Raises:
        Unrepresentable: as `mix`; NaN in a coefficient shows as overflow.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        terms = (
            widen(block, dtype) * widen(coefficient, coefficient_dtype)
            for block, coefficient in zip(blocks, coefficients, strict=True)
        )
        total = next(terms)
        for term in terms:
            total = total + term
        result = narrow(total, out_dtype)
    if not finite(result, out_dtype):
        at_fault = (i for i, block in enumerate(blocks) if not finite(block, dtype))
        raise Unrepresentable(next(at_fault, None))
    return result


def is_uniform(coefficients: Sequence[float]) -> bool:
    """Whether the coefficients are all 1/k, so that one division does."""
    return all(c == 1.0 / len(coefficients) for c in coefficients)


def _sixteen_bits(
    blocks: list[Array], weights: list[float], dtype: str, out: Array, scratch: Scratch
) -> bool:
    """Put the mean of 16-bit blocks into `out`, by the fastest way; whether it is finite."""
    uniform, packed = is_uniform(weights), scratch.packed
    bits = [block.view(np.uint16) for block in blocks]
    result, places = out.view(np.uint16), None
    # Two bfloat16 blocks are faster still the other way.
    close = uniform and len(blocks) > (2 if dtype == "BF16" else 1)
    if close and packed.skip_bits == 0:
        places = mean_of_bits(bits, result, packed, dtype=dtype)
        # Where models lie far apart, do not try each time.
        packed.skip_bits = _TRY_AGAIN if places is None else 0
    packed.skip_bits = max(0, packed.skip_bits - 1)
    if places is None and dtype == "BF16":
        places = _packed(bits, None if uniform else weights, result, packed)
    if places is None:
        _rounded(blocks, weights, dtype, dtype, out, scratch)
        return finite(out, dtype)
    if places.size == 0:
        return True
    again = narrow(_plain(blocks, weights, dtype, scratch, places), dtype)
    out[places] = again
    return finite(again, dtype)


def _packed(
    blocks: list[Array], weights: list[float] | None, out: Array, scratch: PackedScratch
) -> npt.NDArray[np.intp] | None:
    """`mix_packed` for any length and alignment."""
    n = out.size
    even = n - n % 2
    words = [_in_words(block[:even]) for block in blocks]
    aligned = out if out[:even].view(np.uint32).flags.aligned else np.empty_like(out)
    places = mix_packed(words, weights, aligned[:even], scratch)
    if aligned is not out:
        np.copyto(out, aligned)
    return places if places is None or even == n else np.append(places, even)


def _in_words(block: Array) -> Array:
    """The block, or a copy of it whose 32-bit words are aligned."""
    return block if block.view(np.uint32).flags.aligned else block.copy()


def _rounded(
    blocks: list[Array],
    weights: list[float],
    dtype: str,
    out_dtype: str,
    out: Array,
    scratch: Scratch,
) -> None:
    if dtype != "F64":
        total = _plain(blocks, weights, dtype, scratch)
        if out_dtype == "BF16":
            out[:] = narrow(total, out_dtype)
        else:
            np.copyto(out, total, casting="same_kind")  # one rounding, as `narrow`
        return
    for start in range(0, out.size, _PAIRS):
        here = slice(start, start + _PAIRS)
        high, low = _pairs([block[here] for block in blocks], weights)
        out[here] = narrow(high, out_dtype, low)


def _pairs(blocks: list[Array], weights: list[float]) -> tuple[_F64, _F64]:
    """Sums in double-double, also where they leave the range and the mean is in it."""
    high, low = _double_double(blocks, weights)
    at = np.flatnonzero(~np.isfinite(high))
    if at.size:
        scaled = _double_double([block[at] * _SCALE for block in blocks], weights)
        high[at], low[at] = scaled[0] / _SCALE, scaled[1] / _SCALE
    return high, low


def _plain(
    blocks: list[Array],
    weights: list[float],
    dtype: str,
    scratch: Scratch,
    places: npt.NDArray[np.intp] | None = None,
) -> _F64:
    """Float64 sums, in the scratch; of the 16-bit numbers at a few `places` if they are given."""
    uniform = is_uniform(weights)
    n = blocks[0].size if places is None else places.size
    total, term = scratch.total[:n], scratch.term[:n]
    for i, (block, weight) in enumerate(zip(blocks, weights, strict=True)):
        if places is not None:
            # Into memory at hand: pages that come and go with each call cost as much as the sums.
            chosen = scratch.gathered[:n].view(block.dtype)
            block = np.take(block, places, out=chosen, mode="clip")
        if dtype == "BF16":
            block = np.left_shift(block, np.uint32(16), out=scratch.single[:n]).view(np.float32)
        into = total if i == 0 else term
        np.copyto(into, block)
        if not uniform:
            np.multiply(into, weight, out=into)
        if i > 0:
            np.add(total, term, out=total)
    return np.divide(total, len(blocks), out=total) if uniform else total


def _double_double(blocks: list[Array], weights: list[float]) -> tuple[_F64, _F64]:
    """Σ cᵢ·xᵢ as the unevaluated sum of two float64 (Dekker 1971)."""
    uniform = is_uniform(weights)
    terms = (
        (block, np.zeros_like(block)) if uniform else two_product(block, weight)
        for block, weight in zip(blocks, weights, strict=True)
    )
    high, low = next(terms)
    for term, error in terms:
        high, carry = two_sum(high, term)
        low = low + (carry + error)
    high, low = _renormalised(high, low)
    if not uniform:
        return high, low
    k = float(len(blocks))
    quotient = high / k
    product, error = two_product(quotient, k)
    return _renormalised(quotient, ((high - product) - error + low) / k)


def two_sum(a: _F64, b: _F64) -> tuple[_F64, _F64]:
    """`a + b` as a float64 and its exact error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: _F64, b: _F64 | float) -> tuple[_F64, _F64]:
    """`a · b` as a float64 and its exact error (Dekker, Veltkamp)."""
    product = a * b
    split_a = _SPLITTER * a
    a1 = split_a - (split_a - a)
    a2 = a - a1
    split_b = _SPLITTER * b
    b1 = split_b - (split_b - b)
    b2 = b - b1
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _renormalised(high: _F64, low: _F64) -> tuple[_F64, _F64]:
    total = high + low
    rest = low - (total - high)
    # −0.0 + 0.0 is +0.0: keep the sign that the first term gave.
    return np.where(low == 0, high, total), rest
