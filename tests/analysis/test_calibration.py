from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from stockpot.analysis.calibration import (
    BETA_RANGE,
    brier_score,
    calibration,
    expected_calibration_error,
    fit_beta,
    log_softmax,
    negative_log_likelihood,
    reliability,
    top_confidence,
)


@pytest.fixture(scope="module")
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """Logits that are three times as far apart as the true ones, and targets."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 7))
    p = np.exp(log_softmax(logits))
    targets = np.array([rng.choice(7, p=row / row.sum()) for row in p])
    return 3 * logits, targets


def test_equal_width_error_is_that_of_torchmetrics(overconfident) -> None:
    logits, targets = overconfident
    confidence, right = top_confidence(logits, targets)
    theirs = multiclass_calibration_error(
        torch.from_numpy(logits).softmax(-1), torch.from_numpy(targets), num_classes=7, n_bins=15
    )
    ours = expected_calibration_error(confidence, right, bins="width")
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_equal_mass_error_is_the_formula_written_out(overconfident) -> None:
    logits, targets = overconfident
    p = torch.from_numpy(logits).softmax(-1).numpy()
    pairs = sorted((row.max(), float(row.argmax() == y)) for row, y in zip(p, targets, strict=True))
    total, start = 0.0, 0
    for b in range(15):  # 2000 = 5 bins of 134 and 10 of 133
        size = 134 if b < 5 else 133
        part = pairs[start : start + size]
        start += size
        gap = sum(right for _, right in part) / size - sum(c for c, _ in part) / size
        total += size / 2000 * abs(gap)
    assert start == 2000
    confidence, right = top_confidence(logits, targets)
    assert expected_calibration_error(confidence, right) == pytest.approx(total, abs=1e-9)


def test_loss_and_brier_score_are_those_of_scikit_learn(overconfident) -> None:
    logits, targets = overconfident
    p = torch.from_numpy(logits).softmax(-1).numpy()
    assert negative_log_likelihood(logits, targets) == pytest.approx(log_loss(targets, p), abs=1e-9)
    # Class by class, since scikit-learn before 1.7 has no other: the sum is that of all classes.
    theirs = sum(brier_score_loss(targets == c, p[:, c]) for c in range(7))
    assert brier_score(logits, targets) == pytest.approx(theirs, abs=1e-9)


def test_the_order_of_examples_changes_nothing_even_among_equal_confidences() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.choice([0.4, 0.9, 1.0], 100)
    right = (rng.random(100) < 0.7).astype(float)
    order = rng.permutation(100)
    for bins in ("mass", "width"):
        one = expected_calibration_error(confidence, right, bins=bins)
        other = expected_calibration_error(confidence[order], right[order], bins=bins)
        assert one == pytest.approx(other, abs=1e-12)


def test_every_example_is_in_one_bin_and_masses_differ_by_at_most_one(overconfident) -> None:
    confidence, right = top_confidence(*overconfident)
    mass, width = (reliability(confidence, right, bins=bins) for bins in ("mass", "width"))
    assert sum(b.n for b in mass) == sum(b.n for b in width) == 2000
    assert len(mass) == 15
    assert {b.n for b in mass} == {133, 134}
    assert all(b.low <= b.confidence <= b.high for b in (*mass, *width))


def test_certainty_is_in_the_last_bin_and_fewer_examples_than_bins_are_fine() -> None:
    (only,) = reliability([1.0, 1.0], [1, 0], bins="width")
    assert (only.low, only.high, only.accuracy) == (14 / 15, 1.0, 0.5)
    assert expected_calibration_error([0.5, 1.0], [1, 1]) == pytest.approx(0.25)


def test_the_fitted_temperature_undoes_what_made_the_model_too_sure(overconfident) -> None:
    logits, targets = overconfident
    beta = fit_beta(logits, targets)
    assert beta == pytest.approx(1 / 3, rel=0.1)
    before, after = calibration(logits, targets), calibration(logits, targets, beta=beta)
    assert after.ece < before.ece / 3
    assert after.nll < before.nll
    assert after.brier < before.brier
    grid = [negative_log_likelihood(logits, targets, beta=beta * factor) for factor in (0.99, 1.01)]
    assert after.nll < min(grid)


def test_the_temperature_of_two_classes_is_a_logistic_regression_without_intercept() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=500)
    y = (rng.random(500) < 1 / (1 + np.exp(-1.7 * x))).astype(int)
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(x[:, None], y)
    logits = np.stack([np.zeros(500), x], 1)
    assert fit_beta(logits, y) == pytest.approx(float(fit.coef_[0, 0]), abs=1e-5)


def test_a_model_that_is_always_right_or_always_wrong_stops_at_the_bounds() -> None:
    assert fit_beta([[3.0, 0.0]] * 3, [0, 0, 0]) == BETA_RANGE[1]
    assert fit_beta([[3.0, 0.0]] * 3, [1, 1, 1]) == BETA_RANGE[0]


def test_large_logits_do_not_overflow() -> None:
    found = calibration([[1e4, 0.0], [0.0, 1e4]], [0, 0])
    assert found.nll == pytest.approx(5e3)
    assert found.brier == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("confidence", "right"), [([], []), ([0.5], [1, 1]), ([1.5], [1]), ([-0.1], [0])]
)
def test_what_is_no_confidence_is_refused(confidence, right) -> None:
    with pytest.raises(ValueError, match="expected"):
        expected_calibration_error(confidence, right)


def test_a_class_that_is_masked_changes_no_temperature() -> None:
    logits, targets = [[2.0, 0.0]] * 4, [0, 0, 0, 1]
    masked = [[*row, -np.inf] for row in logits]
    assert fit_beta(masked, targets) == fit_beta(logits, targets)
