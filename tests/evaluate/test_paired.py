from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stockpot.evaluate.paired import compare, mcnemar, paired_permutation


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(pairs):
    a, b = zip(*pairs, strict=True)
    only_a = sum(x > y for x, y in pairs)
    only_b = sum(x < y for x, y in pairs)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
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


def test_compare_takes_mcnemar_for_right_and_wrong_and_permutation_otherwise():
    a, b = [1, 1, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]
    assert compare(a, b).p_value == mcnemar(a, b)
    scaled = compare(np.array(a) * 0.5, np.array(b) * 0.5)
    assert scaled.p_value == pytest.approx(mcnemar(a, b), abs=0.02)
    assert scaled.low <= scaled.difference <= scaled.high
