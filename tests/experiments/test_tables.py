"""Cells over several sweeps."""

from __future__ import annotations

import math

import pytest

from experiments import tables


def test_an_interval_over_seeds_is_that_of_student() -> None:
    cell = tables.over_seeds([1.0, 2.0, 3.0])
    assert cell.mean == 2.0
    # t(0.975, 2) = 4.3027, standard error 1/√3
    assert cell.half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


def test_one_value_has_no_interval() -> None:
    cell = tables.over_seeds([0.25])
    assert cell.mean == 0.25
    assert math.isnan(cell.half)
    assert tables.in_percent(cell) == "25.00"
    assert tables.in_points(cell) == "+25.00"


def test_gains_whose_interval_holds_zero_are_marked() -> None:
    assert tables.in_points(tables.Cell(0.01, 0.005, 0.015)) == "+1.00 [+0.50, +1.50]"
    assert tables.in_points(tables.Cell(0.01, -0.01, 0.03)) == "+1.00 [-1.00, +3.00] (n)"
    assert tables.in_percent(tables.Cell(0.5, 0.25, 0.75)) == "50.00 ± 25.00"


def test_every_line_of_a_table_has_as_many_cells() -> None:
    lines = tables.table(["model", "test"], [["greedy", "1"], ["uniform", "2"]])
    assert lines == ["| model | test |", "|---|--:|", "| greedy | 1 |", "| uniform | 2 |"]
