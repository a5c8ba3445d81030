"""Windows along a run against runs with these decays, and averages made afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stockpot.recipes.windows import Window, gamma_of, post_hoc_coefficients

RATES = (1.0, 0.9, 0.3, 0.2, 0.0)
DECAYS = {
    "mean": lambda t: 1 - t,
    "1-sqrt": lambda t: 1 - math.sqrt(t),
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "power": lambda t: 1 - t**3,
    "given": lambda t: np.interp(t, [0, 0.25, 0.5, 0.75, 1], RATES),
}


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("steps", [None, [1, 2, 5, 9, 10]])
def test_a_window_is_the_run_with_that_decay_applied_to_its_steps(
    kind: str, steps: list[int] | None
) -> None:
    """θ₀ + Σ w(tᵢ)·(θᵢ₊₁ − θᵢ), where w is what is left of the rate when a step begins."""
    rng = np.random.default_rng(0)
    start, points = rng.normal(), rng.normal(size=5)
    times = [0.0, *((s / 10) for s in (steps or [2, 4, 6, 8, 10]))]
    moves = np.diff([start, *points])
    decayed = start + sum(DECAYS[kind](t) * move for t, move in zip(times[:-1], moves, strict=True))
    window = Window(  # type: ignore[arg-type]  # the kinds of DECAYS are text here
        kind, 0, 1, 5, 2.0 if kind == "power" else None, rates=RATES if kind == "given" else ()
    )
    assert np.dot(window.coefficients(5, steps), points) == pytest.approx(decayed, abs=1e-13)


def test_weights_worked_by_hand() -> None:
    """n = 20 of minus-sqrt: the oldest .2236, the newest .0253; halves of the cosine are equal."""
    sqrt = Window("1-sqrt", 0, 1, 20).coefficients(20)
    assert (round(sqrt[0], 4), round(sqrt[-1], 4)) == (0.2236, 0.0253)
    assert Window("cosine", 0, 1, 2).coefficients(2) == pytest.approx((0.5, 0.5))
    assert Window("power", 0, 1, 2, 1.0).coefficients(2) == pytest.approx((0.25, 0.75))
    assert Window("power", 0, 1, 3, 0.0).coefficients(3) == pytest.approx((1 / 3,) * 3)
    uneven = Window("mean", 1, 1, 2).coefficients(3, [100, 200, 500])
    assert uneven == pytest.approx((0.0, 0.25, 0.75))
    assert Window("1-sqrt", 2, 1, 1).coefficients(3, [100, 200, 500]) == (0.0, 0.0, 1.0)


def test_a_decay_of_ones_own_that_is_linear_is_the_mean() -> None:
    given = Window("given", 1, 1, 4, rates=(1.0, 0.0))
    assert given.coefficients(5) == pytest.approx(Window("mean", 1, 1, 4).coefficients(5))
    # Constant until the last quarter: the run as it is, but for its last steps.
    late = Window("given", 0, 1, 4, rates=(1.0, 1.0, 1.0, 1.0, 0.0))
    assert late.coefficients(4) == pytest.approx((0, 0, 0, 1))


def test_other_orders_give_the_same_weights_to_other_checkpoints() -> None:
    plain = Window("1-sqrt", 0, 1, 6).coefficients(6)
    back = Window("1-sqrt", 0, 1, 6, order="reversed").coefficients(6)
    assert back == plain[::-1]
    drawn = [Window("1-sqrt", 0, 1, 6, order="random", seed=s).coefficients(6) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(plain)


def test_gamma_and_relative_width() -> None:
    for sigma, gamma in ((0.05, 16.9722), (0.1, 6.9372), (0.15, 3.5579), (0.2, 1.8262)):
        found = gamma_of(sigma)
        assert found == pytest.approx(gamma, abs=5e-5)
        width = math.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3)))
        assert width == pytest.approx(sigma, rel=1e-12)
        # The width is that of the profile: its standard deviation, where the end is at 1.
        t = (np.arange(200_000) + 0.5) / 200_000
        p = (found + 1) * t**found / 200_000
        mean = (p * t).sum()
        assert math.sqrt((p * (t - mean) ** 2).sum()) == pytest.approx(sigma, rel=1e-4)
    for wrong in (0.0, -1.0, 0.3):
        with pytest.raises(ValueError, match="sigma-rel"):
            gamma_of(wrong)


def test_a_stored_average_gives_itself() -> None:
    stored = [(sigma, step) for step in (100, 200, 300) for sigma in (0.05, 0.1)]
    for i, (sigma, step) in enumerate(stored):
        expected = np.eye(len(stored))[i]
        np.testing.assert_allclose(post_hoc_coefficients(stored, sigma, step), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.07, 0.15, 0.2])
def test_other_lengths_come_close_to_the_average_itself(sigma: float) -> None:
    """Of a random walk of 400 steps, two averages stored ten times along the run."""
    walk = np.cumsum(np.random.default_rng(1).normal(size=(400, 30)), axis=0)

    def average(sigma: float, steps: int) -> np.ndarray:
        gamma, value = gamma_of(sigma), np.zeros(30)
        for t in range(1, steps + 1):
            keep = (1 - 1 / t) ** (gamma + 1)
            value = keep * value + (1 - keep) * walk[t - 1]
        return value

    stored = [(s, t) for t in range(40, 401, 40) for s in (0.05, 0.1)]
    weights = post_hoc_coefficients(stored, sigma, 400)
    assert math.fsum(weights) == pytest.approx(1)
    made = weights @ np.stack([average(*one) for one in stored])
    wanted = average(sigma, 400)
    apart = np.linalg.norm(made - wanted)
    assert apart < 0.03 * np.linalg.norm(average(0.05, 400) - wanted)
