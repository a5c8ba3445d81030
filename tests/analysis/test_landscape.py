from __future__ import annotations

import numpy as np
import pytest

from stockpot.analysis.landscape import explore


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
