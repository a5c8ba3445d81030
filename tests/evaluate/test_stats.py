from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stockpot.evaluate.stats import (
    bootstrap_interval,
    bootstrap_mean,
    clopper_pearson,
    mcnemar,
    paired_permutation,
    selection_optimism,
    shift_average,
    t_interval,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_is_scipys_exact_interval(case):
    successes, n = case
    expected = stats.binomtest(successes, n).proportion_ci(method="exact")
    assert clopper_pearson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 3)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson(successes, n)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval_for_many_examples():
    values = np.random.default_rng(0).normal(2, 1, 4000)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.005)


def test_bootstrap_of_a_statistic_agrees_with_that_of_the_mean():
    values = np.random.default_rng(0).random(300)
    general = bootstrap_interval(lambda i: float(values[i].mean()), 300, n_resamples=2000)
    assert general == pytest.approx(bootstrap_mean(values), abs=0.005)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(100)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_t_interval_is_scipys():
    values = [0.91, 0.93, 0.9, 0.95]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)


def test_t_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        t_interval([1.0])


def test_shift_average_weighs_sets_and_not_examples_equally():
    value, low, high = shift_average({"a": np.ones(10), "b": np.zeros(1000)})
    assert (value, low, high) == (0.5, 0.5, 0.5)


def test_the_average_of_one_set_is_its_mean_and_of_none_is_refused():
    values = np.random.default_rng(0).random(200)
    value, low, high = shift_average({"a": values})
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(bootstrap_mean(values))
    with pytest.raises(ValueError, match="at least one shift set"):
        shift_average({})


def test_sets_of_the_same_images_are_resampled_jointly():
    values = (np.random.default_rng(0).random(400) < 0.7).astype(float)
    sets = {"a": values, "b": values, "c": values}
    _, low, high = shift_average(sets, images=dict.fromkeys(sets, "digits"))
    _, low_alone, high_alone = shift_average(sets)
    single = bootstrap_mean(values)
    assert high - low == pytest.approx(single[1] - single[0], abs=0.005)
    assert high_alone - low_alone == pytest.approx((high - low) / np.sqrt(3), rel=0.1)


def test_the_same_images_in_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="unequal size"):
        shift_average({"a": [1.0], "b": [1.0, 0.0]}, images={"a": "x", "b": "x"})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(pairs):
    a, b = zip(*pairs, strict=True)
    only_a = sum(x > y for x, y in pairs)
    only_b = sum(x < y for x, y in pairs)
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
    expected = min(1.0, 2 * tail)
    assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_refuses_other_values_and_lengths():
    with pytest.raises(ValueError, match="other values"):
        mcnemar([0.5], [1])
    with pytest.raises(ValueError, match="equal numbers"):
        mcnemar([1], [1, 0])


def test_permutation_agrees_with_the_enumeration_of_all_sign_flips():
    a = np.array([0.3, 0.5, 0.1, 0.9, 0.7, 0.65, 0.2, 0.8])
    b = np.array([0.1, 0.6, 0.05, 0.5, 0.4, 0.6, 0.1, 0.85])
    d = a - b
    sums = [abs(np.dot(s, d)) for s in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    assert paired_permutation(a, b, n_permutations=40_000) == pytest.approx(exact, abs=0.01)


def test_one_candidate_is_not_flattered():
    values = np.random.default_rng(0).random((1, 500))
    assert abs(selection_optimism(values).value) < 0.003


def test_the_best_of_equals_is_flattered_and_more_so_among_more():
    rng = np.random.default_rng(0)
    values = (rng.random((40, 300)) < 0.8).astype(float)
    few, many = selection_optimism(values[:3]).value, selection_optimism(values).value
    assert 0 < few < many


def test_a_clear_winner_is_not_flattered():
    rng = np.random.default_rng(0)
    values = np.stack([rng.random(400) < 0.95, rng.random(400) < 0.5])
    assert abs(selection_optimism(values).value) < 0.005


def test_lower_is_better_has_the_same_sign():
    values = np.random.default_rng(0).random((20, 200))
    assert selection_optimism(values, higher_is_better=False).value > 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shape"):
        selection_optimism([1.0, 2.0])
