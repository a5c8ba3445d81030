"""Exact arithmetic to compare with: fractions, rounded by the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("F64", "F32", "F16", "BF16")
STORAGE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Bits of the significand (with the hidden one), smallest and largest exponent, unsigned type.
_FORMATS: dict[str, tuple[int, int, int, Any]] = {
    "F64": (53, -1022, 1023, np.uint64),
    "F32": (24, -126, 127, np.uint32),
    "F16": (11, -14, 15, np.uint16),
    "BF16": (8, -126, 127, np.uint16),
}

Block = npt.NDArray[Any]


def nearest(value: Fraction, dtype: str, sign: float = 1.0) -> bytes:
    """The little-endian bytes of the number of `dtype` nearest `value`, ties to even.

    `sign` is that of a zero.
    """
    precision, smallest, largest, storage = _FORMATS[dtype]
    n_bits = np.dtype(storage).itemsize * 8
    negative = value < 0 or (value == 0 and math.copysign(1.0, sign) < 0)
    magnitude = abs(value)
    exponent = smallest
    if magnitude > 0:
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        exponent -= Fraction(2) ** exponent > magnitude
        exponent = max(exponent, smallest)
    steps = round(magnitude / Fraction(2) ** (exponent - precision + 1))
    # A carry out of the significand, and the step from subnormal to normal, come by themselves.
    bits = steps + ((exponent - smallest) << (precision - 1))
    bits = min(bits, (largest - smallest + 2) << (precision - 1))
    bits |= int(negative) << (n_bits - 1)
    return np.array([bits], storage).tobytes()


def values(block: Block, dtype: str) -> Block:
    """The values of a storage array as float64, exactly."""
    if dtype == "BF16":
        block = (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return block.astype(np.float64)


def exact_mix(
    blocks: Sequence[Block], coefficients: Sequence[Fraction], dtype: str
) -> list[Fraction]:
    """Σ cᵢ·xᵢ without any rounding."""
    columns = zip(*(values(block, dtype).tolist() for block in blocks), strict=True)
    return [
        sum((c * Fraction(x) for c, x in zip(coefficients, column, strict=True)), Fraction(0))
        for column in columns
    ]
