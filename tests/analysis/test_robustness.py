from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from stockpot.analysis.robustness import fit_baseline, logit

RNG = np.random.default_rng(0)
REFERENCE = RNG.uniform(0.4, 0.98, 9)
SHIFT = special.expit(0.8 * special.logit(REFERENCE) - 0.5 + 0.1 * RNG.normal(size=9))


def fit():
    return fit_baseline(REFERENCE.tolist(), SHIFT.tolist())


def test_the_line_is_that_of_scipy_in_logit_space():
    expected = stats.linregress(special.logit(REFERENCE), special.logit(SHIFT))
    assert fit().slope == pytest.approx(expected.slope, abs=1e-9)
    assert fit().intercept == pytest.approx(expected.intercept, abs=1e-9)
    assert fit().r_squared == pytest.approx(expected.rvalue**2, abs=1e-9)


def test_effective_robustness_is_the_height_above_the_line():
    found = fit()
    beta = special.expit(found.slope * special.logit(0.7) + found.intercept)
    assert found.expected(0.7) == pytest.approx(beta, abs=1e-12)
    assert found.effective_robustness(0.7, 0.9) == pytest.approx(0.9 - beta, abs=1e-12)


def test_baselines_lie_around_their_own_line():
    found = fit()
    assert found.n == 9
    assert sum(found.residuals) == pytest.approx(0, abs=1e-9)
    for x, y, residual in zip(REFERENCE, SHIFT, found.residuals, strict=True):
        assert special.logit(y) - special.logit(found.expected(x)) == pytest.approx(residual)


def test_a_reference_accuracy_beyond_the_baselines_is_an_extrapolation():
    assert fit().covers(float(np.median(REFERENCE)))
    assert not fit().covers(0.999)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_than_four_baselines_are_refused(n):
    with pytest.raises(ValueError, match="at least 4, better 8"):
        fit_baseline(REFERENCE[:n].tolist(), SHIFT[:n].tolist())


def test_four_are_enough():
    assert fit_baseline(REFERENCE[:4].tolist(), SHIFT[:4].tolist()).n == 4


def test_between_the_baselines_takes_in_the_lowest_and_the_highest_of_them():
    assert fit().covers(float(REFERENCE.min()))
    assert fit().covers(float(REFERENCE.max()))
    assert not fit().covers(float(REFERENCE.min()) - 1e-6)
    assert not fit().covers(float(REFERENCE.max()) + 1e-6)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_accuracies_without_a_logit_are_refused(end):
    with pytest.raises(ValueError, match=f"{end} has no logit"):
        fit_baseline([0.5, 0.6, 0.7, end], [0.5, 0.6, 0.7, 0.8])


def test_baselines_of_one_accuracy_are_refused():
    with pytest.raises(ValueError, match="expected different ones"):
        fit_baseline([0.5] * 4, [0.4, 0.5, 0.6, 0.7])


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="one pair for each"):
        fit_baseline([0.5] * 4, [0.5] * 5)


def test_logit_is_that_of_scipy():
    for x in (1e-9, 0.3, 0.999999):
        assert logit(x) == pytest.approx(special.logit(x), rel=1e-12)
