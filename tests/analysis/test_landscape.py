from __future__ import annotations

import numpy as np
import pytest

from stockpot.analysis.geometry import angle, plane_through
from stockpot.analysis.landscape import explore

MOVES = np.random.default_rng(0).normal(size=(5, 40))  # five moves in a space of 40 weights
GRAM = MOVES @ MOVES.T
ONE_HOT = np.eye(5)


def test_the_basis_is_orthonormal_and_holds_the_two_points() -> None:
    plane = plane_through(GRAM, ONE_HOT[0], ONE_HOT[1])
    u, v = plane.first @ MOVES, plane.second @ MOVES
    assert np.array([[u @ u, u @ v], [v @ u, v @ v]]) == pytest.approx(np.eye(2), abs=1e-12)
    a, b = plane.project(ONE_HOT[0]), plane.project(ONE_HOT[1])
    assert (a.x, a.y) == pytest.approx((np.linalg.norm(MOVES[0]), 0), abs=1e-9)
    assert b.y > 0
    assert a.distance == pytest.approx(0, abs=1e-6)
    assert b.distance == pytest.approx(0, abs=1e-6)


def test_projection_is_least_squares_in_the_full_space() -> None:
    plane = plane_through(GRAM, ONE_HOT[0], np.full(5, 0.2))
    spanned = np.stack([plane.first @ MOVES, plane.second @ MOVES], 1)
    for point in (ONE_HOT[3], np.array([0.1, -0.4, 0.7, 0.2, 0.0])):
        target = point @ MOVES
        expected, residual, *_ = np.linalg.lstsq(spanned, target, rcond=None)
        found = plane.project(point)
        assert (found.x, found.y) == pytest.approx(tuple(expected))
        assert found.distance == pytest.approx(np.sqrt(residual[0]))


def test_a_place_in_the_plane_and_its_projection_are_inverse() -> None:
    plane = plane_through(GRAM, ONE_HOT[2], ONE_HOT[4])
    found = plane.project(plane.at(1.25, -3.5))
    assert (found.x, found.y, found.distance) == pytest.approx((1.25, -3.5, 0), abs=1e-6)


@pytest.mark.parametrize("other", [[2.0, 0, 0, 0, 0], [0.0] * 5])
def test_three_points_on_a_line_are_refused(other: list[float]) -> None:
    with pytest.raises(ValueError, match="plane"):
        plane_through(GRAM, ONE_HOT[0], other)


def test_angles_are_those_of_the_vectors() -> None:
    a, b = MOVES[0], MOVES[1] - 0.5 * MOVES[2]
    expected = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert angle(GRAM, ONE_HOT[0], [0, 1, -0.5, 0, 0]) == pytest.approx(expected)
    assert angle(GRAM, ONE_HOT[0], np.zeros(5)) is None
    assert angle(GRAM, ONE_HOT[0], ONE_HOT[0]) == pytest.approx(0, abs=1e-5)


class Bowl:
    """A steep step along a circle; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, x: float, y: float) -> float:
        self.asked.append((x, y))
        return float(np.hypot(x, y) > 0.7)


def test_no_point_is_asked_for_twice_and_the_budget_holds() -> None:
    for budget in (4, 9, 24, 25, 60, 113):
        bowl = Bowl()
        grid = explore(bowl, x=(-1, 1), y=(-1, 1), budget=budget)
        assert len(set(bowl.asked)) == len(bowl.asked) == len(grid.values) <= budget
        assert grid.points() == bowl.asked


def test_points_gather_where_the_function_changes() -> None:
    grid = explore(Bowl(), x=(-1, 1), y=(-1, 1), budget=120)
    later = grid.points()[25:]
    near = [abs(np.hypot(*point) - 0.7) < 0.3 for point in later]
    assert len(later) > 80
    assert np.mean(near) > 0.8


def test_the_same_values_ask_for_the_same_points() -> None:
    one, other = Bowl(), Bowl()
    for bowl in (one, other):
        explore(bowl, x=(-1, 2), y=(0, 3), budget=70)
    assert one.asked == other.asked


def test_it_ends_when_all_cells_are_at_the_finest_level() -> None:
    bowl = Bowl()
    explore(bowl, x=(0, 1), y=(0, 1), budget=10_000, coarse=3, levels=2)
    assert len(bowl.asked) == 9 * 9


def test_fewer_points_than_corners_are_refused() -> None:
    with pytest.raises(ValueError, match="4 corners"):
        explore(Bowl(), x=(0, 1), y=(0, 1), budget=3)
