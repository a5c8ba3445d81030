from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tensors.oracle import DTYPES, nearest

from stockpot.tensors.rounding import finite, narrow, widen

ANY_BITS = st.integers(0, 2**64 - 1)


def f64(bits: int) -> npt.NDArray[np.float64]:
    return np.array([bits], np.uint64).view(np.float64)


@given(ANY_BITS)
def test_narrowing_is_rounding_the_exact_value_once(bits: int) -> None:
    value = f64(bits)
    if not np.isfinite(value[0]):
        return
    for dtype in DTYPES:
        assert narrow(value, dtype).tobytes() == nearest(Fraction(value[0]), dtype, value[0])


@given(st.integers(0, 0x7F7E), st.sampled_from([0.0, 2.0**-40, -(2.0**-40), 2.0**-52]))
def test_narrowing_to_bf16_near_the_middle_of_two_numbers(bits: int, nudge: float) -> None:
    low, high = widen(np.array([bits, bits + 1], np.uint16), "BF16")
    middle = np.array([(low + high) / 2 * (1 + nudge)])
    for value in (middle, -middle):
        assert narrow(value, "BF16").tobytes() == nearest(Fraction(value[0]), "BF16", value[0])


@given(ANY_BITS, st.integers(-(2**52), 2**52))
def test_narrowing_a_pair_rounds_their_sum_once(bits: int, part: int) -> None:
    high = f64(bits)
    if not np.isfinite(high[0]) or abs(high[0]) < 1e-250:
        return
    low = np.spacing(np.abs(high)) / 2 * (part / 2**52) * 0.999
    exact = Fraction(high[0]) + Fraction(low[0])
    for dtype in ("F32", "F16", "BF16"):
        assert narrow(high, dtype, low).tobytes() == nearest(exact, dtype, high[0])


def test_narrowing_through_float32_would_have_rounded_twice() -> None:
    value = np.array([1 + 2**-8 + 2**-40])
    assert narrow(value, "BF16")[0] == 0x3F81
    twice = value.astype(np.float32)
    assert narrow(twice.astype(np.float64), "BF16")[0] == 0x3F80


def test_narrowing_to_half_does_not_go_through_float32() -> None:
    assert narrow(np.array([1 + 2**-11 + 2**-40]), "F16")[0] == np.float16(1 + 2**-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_widening_stored_numbers_and_narrowing_them_changes_no_bit(dtype: str) -> None:
    if dtype in ("F16", "BF16"):
        block = np.arange(2**16, dtype=np.uint16)
        block = block.view(np.float16) if dtype == "F16" else block
        block = block[np.isfinite(widen(block, dtype))]
    else:
        bits = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
        block = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
        block = block if dtype == "F32" else block.astype(np.float64)
    assert narrow(widen(block, dtype), dtype).tobytes() == block.tobytes()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7FFF, 0xFFFF, 0x7F81])
def test_what_is_no_number_stays_none(bits: int) -> None:
    block = np.array([bits], np.uint16)
    assert not finite(block, "BF16")
    assert not finite(narrow(widen(block, "BF16"), "BF16"), "BF16")


@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65519.9), ("BF16", 3.3961775e38)])
def test_too_large_becomes_infinite_just_above_the_middle(dtype: str, largest: float) -> None:
    assert finite(narrow(np.array([largest]), dtype), dtype)
    assert not finite(narrow(np.array([largest * 1.0001]), dtype), dtype)


def test_shapes_without_dimensions_and_without_elements() -> None:
    assert narrow(np.array(1.0), "BF16").shape == ()
    assert narrow(np.zeros(0), "BF16").shape == (0,)
