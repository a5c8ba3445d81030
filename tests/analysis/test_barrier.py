from __future__ import annotations

import numpy as np
import pytest

from stockpot.analysis.barrier import Barrier, barrier

ALPHAS = np.linspace(0, 1, 11).tolist()


def test_a_straight_line_has_no_barrier() -> None:
    losses = [0.5 + 0.25 * a for a in ALPHAS]
    assert barrier(ALPHAS, losses).height == pytest.approx(0, abs=1e-12)


def test_a_path_below_the_line_has_none_either() -> None:
    assert barrier(ALPHAS, [(a - 0.5) ** 2 for a in ALPHAS]).height == 0


def test_a_hump_is_measured_from_the_line_between_unequal_ends() -> None:
    hump = [1.0 + a + 2 * a * (1 - a) for a in ALPHAS]
    found = barrier(ALPHAS, hump)
    assert found.alpha == pytest.approx(0.5)
    assert found.height == pytest.approx(0.5)


def test_adding_a_linear_loss_changes_nothing() -> None:
    losses = np.random.default_rng(0).random(11)
    tilted = losses + 3 - 2 * np.array(ALPHAS)
    one, other = barrier(ALPHAS, losses.tolist()), barrier(ALPHAS, tilted.tolist())
    assert one.alpha == other.alpha
    assert one.height == pytest.approx(other.height)


@pytest.mark.parametrize(
    ("alphas", "losses"),
    [([0, 1], [1]), ([0.1, 1], [1, 1]), ([0, 0.9], [1, 1]), ([0, 0.5, 0.5, 1], [1, 1, 1, 1])],
)
def test_points_that_are_no_path_are_refused(alphas: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        barrier(alphas, losses)


def test_the_result_says_where() -> None:
    assert barrier([0, 0.25, 1], [0, 5, 0]) == Barrier(5, 0.25)
