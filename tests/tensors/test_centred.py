"""Sums and inner products centred on the first block: compiled, by NumPy, and in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tensors.oracle import STORAGE
from tests.tensors.test_changes import both, needs_compiler, same

from stockpot.tensors import centred
from stockpot.tensors.rounding import narrow, widen
from stockpot.tensors.trim import Stored

TYPES = ("BF16", "F16", "F32")


def near(dtypes: list[str], n: int, generator: np.random.Generator) -> list[Stored]:
    """Blocks that differ by a thousandth."""
    start = generator.normal(size=n)
    return [
        Stored(narrow(start + 1e-3 * generator.normal(size=n), dtype), dtype) for dtype in dtypes
    ]


mixed = st.lists(st.sampled_from(TYPES), min_size=1, max_size=5)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(mixed, st.integers(0, 1500), st.integers(0, 2**32))
def test_mixtures_have_the_bits_of_numpy(dtypes: list[str], n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    blocks = near(dtypes, n, generator)
    weights = generator.normal(0.3, 1, len(dtypes)) * generator.integers(0, 2, len(dtypes))

    def mix() -> np.ndarray:
        out = np.empty(n, np.float32)
        centred.mix(blocks, weights, out)
        return out

    found, expected = both(mix)
    assert same(found, expected)
    exact = sum(w * widen(*one) for w, one in zip(weights, blocks, strict=True))
    np.testing.assert_allclose(found, exact, atol=2e-6 * (1 + np.abs(weights).sum()))


@settings(max_examples=100, deadline=None)
@given(mixed, st.integers(0, 40_000), st.integers(0, 2**32))
def test_inner_products_are_those_of_float64_to_the_precision(
    dtypes: list[str], n: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    blocks = near(dtypes, n, generator)
    values = np.array([widen(*one) for one in blocks])
    values[1:] -= values[0]
    for precision in (np.float32, np.float64):
        vector = generator.normal(size=n).astype(precision)
        exact = values @ vector.astype(np.float64)
        scale = np.abs(values) @ np.abs(vector.astype(np.float64))
        for found in both(lambda v=vector: centred.dot(blocks, v)):  # type: ignore[misc]
            assert (np.abs(found - exact) <= 1e-6 * scale + 1e-12).all()


@needs_compiler
def test_a_small_difference_does_not_drown_in_a_large_sum() -> None:
    """What centring is for: ⟨g, θ₁ − θ₀⟩ is a millionth of ⟨g, θ₀⟩."""
    generator = np.random.default_rng(0)
    first = generator.normal(1, 0.1, 100_000).astype(np.float32)
    second = first + np.float32(1e-6) * generator.normal(size=first.size).astype(np.float32)
    vector = np.ones(first.size, np.float32)
    exact = (second.astype(np.float64) - first).sum()
    found = centred.dot([Stored(first, "F32"), Stored(second, "F32")], vector)
    assert found[1] == pytest.approx(exact, rel=1e-5)


def test_blocks_of_weight_zero_are_not_looked_at() -> None:
    broken = Stored(np.full(3, np.nan, STORAGE["F32"]), "F32")
    whole = Stored(np.array([1, 2, 3], STORAGE["F32"]), "F32")
    for precision in (np.float32, np.float64):
        out = np.empty(3, precision)
        for _ in both(lambda o=out: centred.mix([whole, broken], np.array([0.5, 0.0]), o)):  # type: ignore[misc]
            assert out.tolist() == [0.5, 1, 1.5]


@needs_compiler
def test_blocks_of_other_lengths_are_refused() -> None:
    one, other = Stored(np.ones(3, np.float32), "F32"), Stored(np.ones(2, np.float32), "F32")
    with pytest.raises(ValueError, match="one length"):
        centred.dot([one, other], np.ones(3, np.float32))
