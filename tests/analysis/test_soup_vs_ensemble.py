from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot.analysis.soup_vs_ensemble import soup_minus_ensemble, variance_under

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6))
TARGETS = (X @ RNG.normal(size=(6, 4)) + RNG.gumbel(size=(400, 4))).argmax(1)


def fitted() -> np.ndarray:
    """Weights of a network that has learned something."""
    w = torch.tensor(RNG.normal(size=(16, 10)) * 0.3, requires_grad=True)
    head = torch.tensor(RNG.normal(size=(10, 4)) * 0.3, requires_grad=True)
    optimiser = torch.optim.Adam([w, head], lr=0.02)
    x, y = torch.from_numpy(X), torch.from_numpy(TARGETS)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(torch.tanh(x @ w[:6]) @ head, y).backward()
        optimiser.step()
    return np.concatenate([w.detach().numpy()[:6].ravel(), head.detach().numpy().ravel()])


def network(flat: np.ndarray) -> np.ndarray:
    return np.tanh(X @ flat[:60].reshape(6, 10)) @ flat[60:].reshape(10, 4)


def test_in_the_nearly_linear_regime_the_approximation_is_the_difference() -> None:
    start = fitted()
    move = RNG.normal(size=start.shape) * 0.05
    for alpha in (0.25, 0.5, 0.75):
        at = [network(start + a * move) for a in (0, 1, alpha - 0.05, alpha, alpha + 0.05)]
        found = soup_minus_ensemble(
            alpha, ends=(at[0], at[1]), path=at[2:], step=0.05, targets=TARGETS
        )
        assert found.approximation == pytest.approx(found.measured, rel=0.2, abs=2e-6)
        assert found.measured == pytest.approx(found.soup - found.ensemble)
        assert found.approximation == pytest.approx(found.curvature + found.spread)


def test_for_outputs_linear_in_the_weights_both_are_nothing() -> None:
    one, other = RNG.normal(size=(2, 6, 4))
    path = [X @ ((1 - a) * one + a * other) for a in (0, 1, 0.45, 0.5, 0.55)]
    found = soup_minus_ensemble(
        0.5, ends=(path[0], path[1]), path=path[2:], step=0.05, targets=TARGETS
    )
    assert found.measured == pytest.approx(0, abs=1e-12)
    # The two terms are large and cancel: curvature of the loss along a straight line of outputs
    # is the variance of the difference.
    assert found.spread > 0.03
    assert found.approximation == pytest.approx(0, abs=2e-3 * found.spread)


def test_the_variance_is_the_sum_over_classes_written_out() -> None:
    logits, difference = RNG.normal(size=(2, 3, 5))
    p = torch.softmax(torch.from_numpy(1.7 * logits), -1).numpy()
    expected = np.mean(
        [
            sum(q * d * d for q, d in zip(row, of, strict=True))
            - sum(q * d for q, d in zip(row, of, strict=True)) ** 2
            for row, of in zip(p, difference, strict=True)
        ]
    )
    assert variance_under(logits, difference, beta=1.7) == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "step", "n"), [(0.1, 0.2, 3), (0.5, 0.0, 3), (0.5, 0.1, 2)])
def test_points_outside_the_line_are_refused(alpha: float, step: float, n: int) -> None:
    logits = np.zeros((400, 4))
    with pytest.raises(ValueError, match="expected 3"):
        soup_minus_ensemble(
            alpha, ends=(logits, logits), path=[logits] * n, step=step, targets=TARGETS
        )


def test_a_class_that_is_masked_has_no_part_in_the_variance() -> None:
    logits, difference = np.array([[0.0, 0.0]]), np.array([[1.0, 3.0]])
    masked = np.array([[0.0, 0.0, -np.inf]])
    assert variance_under(masked, np.array([[1.0, 3.0, np.nan]])) == variance_under(
        logits, difference
    )
