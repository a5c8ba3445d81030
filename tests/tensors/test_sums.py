from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tensors.oracle import DTYPES, STORAGE, Block, exact_mix, nearest, values

from stockpot.tensors import compiled
from stockpot.tensors.rounding import narrow, widen
from stockpot.tensors.sums import Unrepresentable, mix

MIXED = [(a, b) for a in DTYPES for b in DTYPES]


@pytest.fixture(autouse=True, params=["compiled", "numpy"], scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on both ways to sum."""
    way: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if way == "numpy":
            patch.setattr(compiled, "available", lambda *_: False)
        elif not compiled.available("F32", "F32"):
            pytest.skip("this copy was installed without a C compiler")
        yield way


def bits_of(dtype: str, k: int, n: int, seed: int) -> list[Block]:
    """Any finite numbers of a type, of any magnitude."""
    generator = np.random.default_rng(seed)
    size = np.dtype(STORAGE[dtype]).itemsize
    unsigned = np.dtype(f"u{size}")
    blocks = []
    while len(blocks) < k:
        bits = generator.integers(0, 2 ** (8 * size), n, dtype=unsigned).view(STORAGE[dtype])
        bits[~np.isfinite(values(bits, dtype))] = 0
        blocks.append(bits)
    return blocks


def fine_tuned(dtype: str, k: int, n: int, *, moved: float = 0.01, seed: int = 0) -> list[Block]:
    """Weights of k models that moved a little from common ones."""
    generator = np.random.default_rng(seed)
    base = generator.normal(0, 0.02, n)
    return [narrow(base + generator.normal(0, 0.02 * moved, n), dtype) for _ in range(k)]


@pytest.mark.parametrize(("dtype", "out_dtype"), MIXED)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32))
def test_the_mean_of_close_numbers_is_the_exact_mean_rounded_once(
    dtype: str, out_dtype: str, k: int, seed: int
) -> None:
    blocks = fine_tuned(dtype, k, 40, seed=seed)
    found = mix(blocks, [1 / k] * k, dtype=dtype, out_dtype=out_dtype)
    expected = exact_mix(blocks, [Fraction(1, k)] * k, dtype)
    assert found.tobytes() == b"".join(nearest(value, out_dtype) for value in expected)


@pytest.mark.parametrize(
    ("k", "dtype"), [(k, d) for k in (2, 3, 4, 5, 8, 20, 72, 300) for d in ("F16", "BF16")]
)
def test_a_mean_of_16_bit_numbers_is_their_float64_mean_rounded_once(k: int, dtype: str) -> None:
    n = 100_003 if k <= 20 else 10_003
    for blocks in (
        fine_tuned(dtype, k, n, moved=0.0),
        fine_tuned(dtype, k, n, moved=0.003),
        fine_tuned(dtype, k, n, moved=0.05),
        fine_tuned(dtype, k, n, moved=50.0),
        bits_of(dtype, k, n, seed=k),
    ):
        small = [block if dtype == "F16" else block & np.uint16(0xBFFF) for block in blocks]
        wide = sum(values(block, dtype) for block in small) / k
        found = mix(small, [1 / k] * k, dtype=dtype, out_dtype=dtype)
        assert found.tobytes() == narrow(np.asarray(wide), dtype).tobytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cancellation_does_not_spoil_a_bf16_mean(data: st.DataObject) -> None:
    """Large terms that cancel leave the small ones, of which float32 sums would keep nothing."""
    k = data.draw(st.integers(2, 6))
    exponents = st.lists(st.integers(-30, 30), min_size=k, max_size=k)
    columns = []
    for _ in range(8):
        column = [data.draw(st.integers(-255, 255)) * 2.0**e for e in data.draw(exponents)]
        if data.draw(st.booleans()):
            column[-1] = -column[0]
        columns.append(column)
    array = np.array(columns, np.float64)
    blocks = [narrow(np.ascontiguousarray(array[:, i]), "BF16") for i in range(k)]
    total = values(blocks[0], "BF16")
    for block in blocks[1:]:
        total = total + values(block, "BF16")
    found = mix(blocks, [1 / k] * k, dtype="BF16", out_dtype="BF16")
    assert found.tobytes() == narrow(total / k, "BF16").tobytes()


def test_terms_that_float32_would_drop_are_kept() -> None:
    blocks = [narrow(np.array([x]), "BF16") for x in (1.0, 2.0**-20 * 1.5, -1.0)]
    found = mix(blocks, [1 / 3] * 3, dtype="BF16", out_dtype="BF16")
    assert values(found, "BF16")[0] == 2.0**-21


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 20, 72])
def test_copies_give_the_copy_bit_for_bit(dtype: str, k: int) -> None:
    block = bits_of(dtype, 1, 1000, seed=k)[0]
    assert mix([block] * k, [1 / k] * k, dtype=dtype, out_dtype=dtype).tobytes() == block.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_survives(dtype: str) -> None:
    zero = narrow(np.array([-0.0]), dtype)
    plus = narrow(np.array([0.0]), dtype)
    for weights in ([0.5, 0.5], [0.25, 0.75], [1.0, 0.0]):
        assert mix([zero, zero], weights, dtype=dtype, out_dtype=dtype).tobytes() == zero.tobytes()
    assert mix([zero, plus], [0.5, 0.5], dtype=dtype, out_dtype=dtype).tobytes() == plus.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_coefficient_of_zero_is_not_even_looked_at(dtype: str) -> None:
    block, bad = narrow(np.array([1.5]), dtype), narrow(np.array([np.inf]), dtype)
    found = mix([bad, block], [0.0, 1.0], dtype=dtype, out_dtype=dtype)
    assert found.tobytes() == block.tobytes()


@pytest.mark.parametrize(("dtype", "out_dtype"), MIXED)
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32))
def test_weighted_sums_are_float64_sums_rounded_once(
    dtype: str, out_dtype: str, k: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.normal(0.3, 0.5, k)
    blocks = fine_tuned(dtype, k, 30, seed=seed)
    found = mix(blocks, weights.tolist(), dtype=dtype, out_dtype=out_dtype)
    if dtype == "F64":
        exact = exact_mix(blocks, [Fraction(w) for w in weights], dtype)
        assert found.tobytes() == b"".join(nearest(value, out_dtype) for value in exact)
        return
    total = values(blocks[0], dtype) * weights[0]
    for block, weight in zip(blocks[1:], weights[1:], strict=True):
        total = total + values(block, dtype) * weight
    assert found.tobytes() == narrow(total, out_dtype).tobytes()


def test_a_float64_mean_whose_sum_overflows_is_still_found() -> None:
    large = np.array([1.7e308, 1.0])
    found = mix([large] * 3, [1 / 3] * 3, dtype="F64", out_dtype="F64")
    assert found.tobytes() == large.tobytes()


def test_a_bf16_mean_whose_float32_sum_overflows_is_still_found() -> None:
    large = np.full(9, 0x7F7F, np.uint16)
    found = mix([large] * 5, [0.2] * 5, dtype="BF16", out_dtype="BF16")
    assert found.tobytes() == large.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_the_block_that_is_not_finite_is_named(dtype: str, bad: float, at: int) -> None:
    blocks = [np.ones(1001) for _ in range(3)]
    blocks[at][1000] = bad
    with np.errstate(invalid="ignore"):
        stored = [narrow(block, dtype) for block in blocks]
    with pytest.raises(Unrepresentable) as caught:
        mix(stored, [1 / 3] * 3, dtype=dtype, out_dtype=dtype)
    assert caught.value.index == at


@pytest.mark.parametrize("bits", [0x7FFF, 0xFFFF, 0x7F81])
def test_every_kind_of_bf16_nan_is_found(bits: int) -> None:
    blocks = [np.full(64, 0xBF80, np.uint16) for _ in range(3)]
    blocks[1][63] = bits
    with pytest.raises(Unrepresentable):
        mix(blocks, [1 / 3] * 3, dtype="BF16", out_dtype="BF16")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_blocks_that_are_not_finite_at_the_same_place_are_found(bits: int) -> None:
    blocks = [np.full(64, 0xBF80, np.uint16) for _ in range(3)]
    for block in blocks:
        block[5] = bits
    with pytest.raises(Unrepresentable) as caught:
        mix(blocks, [1 / 3] * 3, dtype="BF16", out_dtype="BF16")
    assert caught.value.index == 0


def test_opposite_infinities_do_not_hide_each_other() -> None:
    blocks = [np.array([np.inf]), np.array([-np.inf])]
    with pytest.raises(Unrepresentable) as caught:
        mix(blocks, [0.5, 0.5], dtype="F64", out_dtype="F64")
    assert caught.value.index == 0


def test_overflow_of_the_output_type_has_no_block_at_fault() -> None:
    with pytest.raises(Unrepresentable) as caught:
        mix([np.float32([1e5])] * 2, [0.5, 0.5], dtype="F32", out_dtype="F16")
    assert caught.value.index is None


def test_extrapolation_beyond_the_type_is_refused() -> None:
    blocks = [np.full(8, 0x7F00, np.uint16), np.full(8, 0xFF00, np.uint16)]
    with pytest.raises(Unrepresentable) as caught:
        mix(blocks, [3.0, -2.0], dtype="BF16", out_dtype="BF16")
    assert caught.value.index is None


def test_blocks_that_are_not_aligned_to_words_give_the_same() -> None:
    blocks = fine_tuned("BF16", 3, 1001)
    raw = [np.concatenate([np.zeros(1, np.uint16), block]) for block in blocks]
    found = mix([block[1:] for block in raw], [1 / 3] * 3, dtype="BF16", out_dtype="BF16")
    aligned = mix(blocks, [1 / 3] * 3, dtype="BF16", out_dtype="BF16")
    assert found.tobytes() == aligned.tobytes()


def test_blocks_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        mix([np.ones(3), np.ones(4)], [0.5, 0.5], dtype="F64", out_dtype="F64")


def test_inputs_are_left_as_they_were() -> None:
    blocks = [widen(np.ones(5, np.float32), "F32") for _ in range(2)]
    mix(blocks, [0.5, 0.5], dtype="F64", out_dtype="F64")
    mix(blocks, [0.25, 0.75], dtype="F64", out_dtype="F32")
    assert all((block == 1).all() for block in blocks)
