from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from stockpot.analysis.pairs import pair_correlation

PAIRS = list(combinations(range(12), 2))


def test_the_value_is_pearsons_over_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=66), rng.normal(size=66)
    found = pair_correlation(PAIRS, x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert (found.n_pairs, found.n_runs) == (66, 12)


def test_the_interval_over_runs_is_wider_than_one_over_pairs_when_runs_matter() -> None:
    rng = np.random.default_rng(1)
    of_run = rng.normal(size=(2, 12))
    x, y = (np.array([row[i] + row[j] for i, j in PAIRS]) for row in of_run)
    found = pair_correlation(PAIRS, x, y, n_resamples=500)
    plain = [
        np.corrcoef(x[part], y[part])[0, 1]
        for part in (rng.integers(0, 66, 66) for _ in range(500))
    ]
    width = np.quantile(plain, 0.975) - np.quantile(plain, 0.025)
    assert found.low < found.value < found.high
    assert found.high - found.low > 1.5 * width


def test_a_perfect_line_stays_perfect_in_every_resample() -> None:
    x = np.arange(66.0)
    found = pair_correlation(PAIRS, x, -2 * x, n_resamples=50)
    assert (found.value, found.low, found.high) == pytest.approx((-1, -1, -1))


def test_what_does_not_vary_has_no_correlation_and_three_runs_no_interval() -> None:
    assert pair_correlation(PAIRS, np.ones(66), np.arange(66.0)).value is None
    few = pair_correlation([(0, 1), (0, 2), (1, 2)], [1, 2, 3], [1, 3, 2])
    assert few.value == pytest.approx(0.5)
    assert few.low is None
    assert pair_correlation([], [], []).value is None


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="equal numbers"):
        pair_correlation(PAIRS, [1.0], [1.0])
