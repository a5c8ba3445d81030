"""Σ cᵢ·θᵢ over blocks of several ingredients, rounded once to the output type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stockpot.tensors import compiled
from stockpot.tensors.rounding import Array, finite, narrow, widen
from stockpot.tensors.spec import DType

_F64 = npt.NDArray[np.float64]

_SPLITTER = 134217729.0  # 2²⁷ + 1: Veltkamp's split of a float64 into two halves of 26 bits
_SCALE = 2.0**-64
_PART = 1 << 14
"""Numbers that NumPy sums at a time, so that its arrays stay in the cache."""


class Unrepresentable(ArithmeticError):  # noqa: N818 — a finding, which the engine names and raises
    """A block has no finite mean: `index` is the first ingredient at fault, None for overflow."""

    def __init__(self, index: int | None) -> None:
        super().__init__(
            "the mean is too large for the output type"
            if index is None
            else f"block {index} holds NaN or infinity"
        )
        self.index = index


def mix(
    blocks: Sequence[Array],
    coefficients: Sequence[float],
    *,
    dtype: str,
    out_dtype: str,
    out: Array | None = None,
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
        out: takes the result, if given, and is returned; contiguous storage of `out_dtype`.

    Raises:
        Unrepresentable: a block holds NaN or infinity, or the result does not fit `out_dtype`.
        ValueError: nothing to sum, or blocks of different lengths.

    >>> mix([np.float32([1, 2]), np.float32([3, 5])], [0.5, 0.5], dtype="F32", out_dtype="F32")
    array([2. , 3.5], dtype=float32)
    """
    taking_part = [i for i, c in enumerate(coefficients) if c != 0]
    chosen = [blocks[i] for i in taking_part]
    weights = [coefficients[i] for i in taking_part]
    if not chosen:
        raise ValueError("there is nothing to sum: every coefficient is 0")
    n = chosen[0].size
    if any(block.size != n for block in chosen):
        raise ValueError(
            f"blocks of {sorted({b.size for b in chosen})} numbers; expected one length"
        )
    if out is None:
        out = np.empty(n, DType(out_dtype).storage)
    if len(chosen) == 1 and weights[0] == 1.0 and dtype == out_dtype:
        np.copyto(out, chosen[0])
        all_finite = finite(out, out_dtype)
    elif compiled.available(dtype, out_dtype):
        shares = None if is_uniform(weights) else weights
        all_finite = compiled.mix(chosen, shares, out, dtype=dtype, out_dtype=out_dtype)
    else:
        _rounded(chosen, weights, dtype, out_dtype, out)
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


def _rounded(
    blocks: list[Array], weights: list[float], dtype: str, out_dtype: str, out: Array
) -> None:
    """Put the sums into `out`, by NumPy."""
    sums = _pairs if dtype == "F64" else _plain
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start in range(0, out.size, _PART):
            part = slice(start, start + _PART)
            total, rest = sums([widen(block[part], dtype) for block in blocks], weights)
            out[part] = narrow(total, out_dtype, rest)


def _plain(blocks: list[_F64], weights: list[float]) -> tuple[_F64, None]:
    """Float64 sums."""
    uniform = is_uniform(weights)
    total = blocks[0] if uniform else blocks[0] * weights[0]
    for block, weight in zip(blocks[1:], weights[1:], strict=True):
        total = total + (block if uniform else block * weight)
    return (total / len(blocks) if uniform else total), None


def _pairs(blocks: list[Array], weights: list[float]) -> tuple[_F64, _F64]:
    """Sums in double-double, also where they leave the range and the mean is in it."""
    high, low = _double_double(blocks, weights)
    at = np.flatnonzero(~np.isfinite(high))
    if at.size:
        scaled = _double_double([block[at] * _SCALE for block in blocks], weights)
        high[at], low[at] = scaled[0] / _SCALE, scaled[1] / _SCALE
    return high, low


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
