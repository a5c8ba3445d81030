"""Changes from a base: the compiled passes and NumPy give the same bits on any input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tensors.oracle import STORAGE, Block

from stockpot.mixing.rules.order import kept_at_random
from stockpot.tensors import compiled
from stockpot.tensors.changes import (
    add_change,
    beginning_with,
    by_rank,
    change,
    count_digits,
    count_sizes,
    finite_change,
    gram,
    l1_norms,
    merge,
    sizes,
    squares,
    variances,
)
from stockpot.tensors.rounding import narrow
from stockpot.tensors.sums import Unrepresentable
from stockpot.tensors.trim import NO_TRIM, Merging, Stored, Term, Trim

TYPES = ("BF16", "F16", "F32")
needs_compiler = pytest.mark.skipif(
    not compiled.available("F32", "F32"), reason="this copy was installed without a C compiler"
)


def any_bits(dtype: str, n: int, generator: np.random.Generator) -> Stored:
    size = np.dtype(STORAGE[dtype]).itemsize
    bits = generator.integers(0, 2 ** (8 * size), n, dtype=np.dtype(f"u{size}"))
    return Stored(bits.view(STORAGE[dtype]), dtype)


def stored(values: object, dtype: str = "F32") -> Stored:
    return Stored(np.asarray(values, STORAGE[dtype]), dtype)


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """What the compiled pass gives, and NumPy; the name of what they raise in place of it."""
    found = []
    for absent in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if absent:
                patch.setattr(compiled, "_loaded", lambda _: None)
            try:
                found.append(function())
            except Unrepresentable:
                found.append("unrepresentable")
    return found[0], found[1]


def same(one: object, other: object) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return bool(one is other)
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


pairs = st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES))
seeds = st.integers(0, 2**32)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(pairs, st.integers(0, 1200), st.booleans(), st.booleans(), seeds)
def test_trimmed_changes_of_any_bits(
    dtypes: tuple[str, str], n: int, some: bool, each: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    value, base = (any_bits(dtype, n, generator) for dtype in dtypes)
    if n < 40:  # so that one that is refused does not hide the others
        width = 1
    else:
        width = n
        ordinary = generator.normal(size=n)
        value = stored(ordinary) if dtypes[0] == "F32" else value
    kept = generator.random(n) < 0.5 if some else None
    shares = generator.random(n) * generator.integers(0, 2, n) if each else 0.3
    least = float(generator.choice([0.0, 1e-3, 1.0]))
    factor = float(generator.choice([1.0, -0.7]))
    for start in range(0, n, width):
        part = slice(start, start + width)
        trim = Trim(
            least,
            float(generator.choice([2.0, math.inf])),
            None if kept is None else kept[part],
            shares if isinstance(shares, float) else shares[part],
        )
        ends = Stored(value.block[part], value.dtype), Stored(base.block[part], base.dtype)
        with np.errstate(all="ignore"):
            found, expected = both(lambda e=ends, t=trim: change(*e, t, factor=factor))  # type: ignore[misc]
            assert same(found, expected)
            assert same(*both(lambda e=ends, t=trim: finite_change(*e, t)))  # type: ignore[misc]


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(pairs, st.integers(0, 2000), st.booleans(), seeds)
def test_norms_of_any_bits(dtypes: tuple[str, str], n: int, some: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    value, base = (any_bits(dtype, n, generator) for dtype in dtypes)
    trim = Trim(1e-3, 10.0, generator.random(n) < 0.5 if some else None, share=0.1)
    with np.errstate(all="ignore"):
        found, expected = both(lambda: l1_norms(value, base, trim))
        sizes_ = np.abs(finite_change(value, base))
        kept = np.abs(finite_change(value, base, Trim(trim.least, trim.most, trim.kept)))
    assert same(found, expected)
    assert found == pytest.approx([sizes_.sum(), kept.sum()], rel=1e-12)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(TYPES), min_size=2, max_size=6),
    st.sampled_from(TYPES),
    st.integers(1, 1200),
    st.fixed_dictionaries(
        {
            "elect": st.booleans(),
            "normalise": st.booleans(),
            "weigh": st.booleans(),
            "divisor": st.sampled_from([1.0, 0.3]),
            "scale": st.sampled_from([1.0, -0.7]),
            "least_variance": st.sampled_from([None, 0.0, 0.3]),
        }
    ),
    st.sampled_from([1, -1]),
    seeds,
)
def test_merged_terms_of_any_kind(
    dtypes: list[str], out_dtype: str, n: int, how: dict[str, Any], tie: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)

    def numbers(dtype: str) -> Stored:
        # Small whole numbers cancel out often, others round, and few are next to nothing.
        values = generator.choice([generator.integers(-2, 3, n) * 0.5, generator.normal(size=n)])
        values[generator.random(n) < 0.01] *= generator.choice([1e-39, 1.0])
        return Stored(narrow(values, dtype), dtype)

    def trim() -> Trim:
        kept = generator.random(n) < 0.5 if generator.random() < 0.5 else None
        share = (
            generator.choice([1.0, 0.3]) if generator.random() < 0.7 else generator.random(n) + 1
        )
        least, most = generator.choice([0.0, 0.4]), generator.choice([2.0, math.inf])
        return Trim(float(least), float(most), kept, share if np.ndim(share) else float(share))

    base, *values = map(numbers, dtypes)
    terms = [Term(value, trim(), float(generator.choice([1.0, 0.3]))) for value in values]
    merging = Merging(weights=generator.normal(0.5, 1, len(terms)).tolist(), **how)

    def merged() -> Block:
        out = Stored(np.zeros(n, STORAGE[out_dtype]), out_dtype)
        merge(terms, base, merging, lambda: tie, out)
        return out.block

    assert same(*both(merged))


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
def test_merges_refuse_what_is_not_finite_and_what_does_not_fit(dtype: str) -> None:
    weights = Merging(weights=[1.0])
    for value, scale in ((np.nan, 1.0), (np.inf, 1.0), (2.0, 1e39)):
        term = Term(Stored(narrow(np.array([0, value]), dtype), dtype), Trim(least=5), 1.0)
        kept = Term(term.value, NO_TRIM, 1.0)
        base = Stored(narrow(np.zeros(2), dtype), dtype)
        how = Merging(weights=[1.0], scale=scale)
        with pytest.raises(Unrepresentable):
            merge([kept], base, how, lambda: 1, Stored(base.block.copy(), dtype))
        if scale == 1:  # in what is trimmed away, too
            with pytest.raises(Unrepresentable):
                merge([term], base, weights, lambda: 1, Stored(base.block.copy(), dtype))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4), st.integers(0, 1200), seeds)
@pytest.mark.parametrize("about", [False, True])
def test_inner_products_of_any_bits(about: bool, dtypes: list[str], n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    bits = [any_bits(dtype, n, generator) for dtype in ["BF16", *dtypes]]
    numbers = [stored(generator.normal(size=n)) for _ in dtypes]
    for blocks in (bits[1:], numbers):
        origin = bits[0] if about else None
        with np.errstate(all="ignore"):
            found, expected = both(lambda b=blocks, o=origin: gram(b, o))  # type: ignore[misc]
        np.testing.assert_array_equal(found, expected)  # but for the sign of a NaN
        assert same(found.T, found)
    values = np.array([one.block for one in numbers], np.float64)
    assert gram(numbers) == pytest.approx(values @ values.T, rel=1e-12)


def test_ranks_of_sizes_that_differ_in_their_last_bits_alone() -> None:
    """More of them than are worth putting in order one by one."""
    steps = np.random.default_rng(0).integers(0, 64, 3000)
    value = stored(1 + steps * 2.0**-23)
    base = stored(np.full(3000, 2.0**-40))
    for width in (3000, 10):
        assert same(*both(lambda w=width: by_rank(value, base, np.arange(float(w)))))  # type: ignore[misc]
    ranks = by_rank(value, base, np.arange(3000.0))
    assert ranks[0].argsort().tolist() == steps.argsort(kind="stable").tolist()


@needs_compiler
def test_ranks_among_a_few_that_are_much_larger_are_those_of_all() -> None:
    """A few thousand in one bin, which are sorted by their bytes."""
    generator = np.random.default_rng(0)
    value = stored(np.append(generator.normal(size=4000), [1e9, 1e30]))
    base = stored(np.zeros(4002))
    found, expected = both(lambda: by_rank(value, base, np.arange(4002.0)))
    assert same(found, expected)
    assert found[0, -2:].tolist() == [4000, 4001]


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(TYPES), min_size=2, max_size=6), st.integers(0, 1200), seeds)
def test_variances_and_squares_of_any_bits(dtypes: list[str], n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for make in (any_bits, lambda dtype, n, g: Stored(narrow(g.normal(3, 1, n), dtype), dtype)):
        base, *values = (make(dtype, n, generator) for dtype in dtypes)
        with np.errstate(all="ignore"):
            assert same(*both(lambda v=values, b=base: variances(v, b)))  # type: ignore[misc]
            least = float(np.median(variances(values, base))) if n else 0.0
            found, expected = both(lambda v=values, b=base, x=least: squares(v, b, x))  # type: ignore[misc]
        assert same(found, expected)
        assert found.shape[0] == len(values)


@needs_compiler
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1200), st.sampled_from([48, 32, 0]), seeds)
def test_counts_and_picks_of_numbers(n: int, shift: int, seed: int) -> None:
    numbers = np.abs(np.random.default_rng(seed).normal(size=n))
    prefix = int(numbers.view(np.uint64)[0]) >> (shift + 16) if n and shift < 48 else 0
    assert same(*both(lambda: count_digits(numbers, prefix, shift)))
    assert same(*both(lambda: beginning_with(numbers, prefix, shift + 16)))


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_sign_of_ties_is_asked_for_only_where_terms_cancel_out(dtype: str) -> None:
    asked = []

    def tie() -> int:
        asked.append(True)
        return -1

    def merged(values: list[list[float]], tie: Callable[[], int]) -> list[float]:
        terms = [Term(stored(one, dtype), NO_TRIM, 1.0) for one in values]
        out = stored([0, 0, 0], dtype)
        merge(terms, stored([0, 0, 0], dtype), Merging(weights=[1, 1]), tie, out)
        return out.block.tolist()

    assert merged([[1.0, 0, 2], [-3.0, 0, 1]], tie) == [-3, 0, 3]
    assert asked == []
    assert merged([[1.0, 0, 2], [-1.0, 0, -2]], tie) == [-1, 0, -2]
    assert asked == [True]
    with pytest.raises(ValueError, match="sign of ties"):
        merged([[1.0, 0, 2], [-1.0, 0, -2]], lambda: 0)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(pairs, st.integers(0, 1200), st.sampled_from([48, 32, 0]), seeds)
def test_counts_and_sizes_of_any_bits(
    dtypes: tuple[str, str], n: int, shift: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    value, base = (any_bits(dtype, n, generator) for dtype in dtypes)
    with np.errstate(all="ignore"):
        every, by_numpy = both(lambda: sizes(value, base))
        assert same(every, by_numpy)
        assert every.size == n
        prefix = int(every[0]) >> (shift + 16) if n and shift < 48 else 0
        counts, expected = both(lambda: count_sizes(value, base, prefix, shift))
        assert same(counts, expected)
        assert counts.sum() == sum(int(bits) >> (shift + 16) == prefix for bits in every)
        digit = int(np.argmax(counts))
        of_digit = both(lambda: sizes(value, base, prefix << 16 | digit, shift))
        assert same(*of_digit)
        assert of_digit[0].size == counts[digit]


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(pairs, st.integers(1, 5), st.integers(1, 1200), st.booleans(), seeds)
def test_ranks_of_any_bits(
    dtypes: tuple[str, str], n_rows: int, width: int, few: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    value, base = (any_bits(dtype, n_rows * width, generator) for dtype in dtypes)
    if few:  # equal sizes
        base = stored(np.zeros(n_rows * width))
        value = stored(generator.integers(-2, 3, n_rows * width))
    with np.errstate(all="ignore"):
        found, expected = both(lambda: by_rank(value, base, np.arange(float(width))))
    assert same(found, expected)
    assert sorted(found[0]) == list(range(width))


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 1500), st.booleans(), st.text(max_size=5))
def test_what_is_drawn_depends_on_key_and_place_alone(
    start: int, n: int, each: bool, key: str
) -> None:
    share = np.linspace(0, 1, n) if each else 0.3
    found, expected = both(lambda: kept_at_random(key, start, n, share))
    assert same(found, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out_dtype", TYPES)
def test_a_change_is_added_and_rounded_once(dtype: str, out_dtype: str) -> None:
    generator = np.random.default_rng(3)
    base = any_bits(dtype, 3000, generator)
    moved = generator.normal(size=3000)

    def add(part: slice) -> Block:
        out = Stored(np.empty(1, STORAGE[out_dtype]), out_dtype)
        add_change(Stored(base.block[part], dtype), moved[part], out)
        return out.block

    with np.errstate(all="ignore"):
        for i in range(300):  # one at a time, so that one that is refused does not hide the others
            assert same(*both(lambda part=slice(i, i + 1): add(part)))  # type: ignore[misc]


def test_what_is_not_finite_is_refused_kept_or_not_and_counts_as_no_change() -> None:
    base, value = stored([0, 0, 1]), stored([np.nan, np.inf, 3])
    for trim in (NO_TRIM, Trim(least=2), Trim(kept=np.array([False, False, True]))):
        with pytest.raises(Unrepresentable):
            change(value, base, trim)
    assert finite_change(value, base).tolist() == [0, 0, 2]
    assert sizes(value, base).view(float).tolist() == [0, 0, 2]


@needs_compiler
def test_blocks_of_other_lengths_are_refused() -> None:
    three, two = stored([1, 2, 3]), stored([1, 2])
    with pytest.raises(ValueError, match="one length"):
        change(three, two)
    with pytest.raises(ValueError, match="one length"):
        change(three, three, Trim(kept=np.array([True])))
    with pytest.raises(ValueError, match="one length"):
        variances([three, two], three)
    with pytest.raises(ValueError, match="a weight for each block"):
        merge([Term(three, NO_TRIM, 1.0)], three, Merging(weights=[]), lambda: 1, three)
