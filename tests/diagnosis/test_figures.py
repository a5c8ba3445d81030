"""Figures show the numbers that were measured, all of them, and change none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stockpot._figures import Heatmap, figure_from_json
from stockpot.analysis.barrier import ScoredLine
from stockpot.analysis.landscape import Landscape, PlaneModel, PlanePoint
from stockpot.diagnosis.figures import (
    angle_chart,
    contribution_chart,
    greedy_path_chart,
    landscape_heatmap,
    pair_groups,
)
from stockpot.diagnosis.parts import Contribution


@pytest.fixture(scope="module")
def figures(found):
    return {figure.name: figure for figure in found.diagnosis.figures()}


def test_every_figure_has_a_name_of_its_own_and_says_what_it_shows(found, figures) -> None:
    assert list(figures) == [
        "landscape", "lines", "barriers", "angles", "diversity", "gaps",
        "reliability", "growth", "leave-one-out", "layer-distances", "layer-angles",
    ]  # fmt: skip
    assert all(len(figure.explanation) > 40 for figure in figures.values())
    for figure in figures.values():
        written = json.loads(json.dumps(figure.to_json(), allow_nan=False))
        assert figure_from_json(written) == figure


def test_a_diagnosis_without_parts_shows_what_it_has(found) -> None:
    bare = replace(
        found.diagnosis, landscape=None, lines=(), pairs=(), layers=(), override=None,
        calibration=(), contributions=(), growth=(), models={},
    )  # fmt: skip
    assert bare.figures() == []
    assert bare.tables() == []


def test_lines_are_the_losses(found, figures) -> None:
    lines = [line for line in found.diagnosis.lines if line.kind != "greedy path"]
    assert [line.y for line in figures["lines"].lines] == [line.losses for line in lines]
    assert f"{max(line.barrier for line in lines):.3f} nat" in figures["lines"].explanation


def test_the_greedy_path_goes_from_soup_to_soup() -> None:
    def step(n: int, losses: tuple[float, ...]) -> ScoredLine:
        a, b, alphas = f"greedy of {n}", f"greedy of {n + 1}", (0.0, 0.5, 1.0)
        return ScoredLine(a, b, "greedy path", alphas, losses, losses, 0.05 * n, 0.5)

    chart = greedy_path_chart([step(1, (0.2, 0.18, 0.19)), step(2, (0.19, 0.3, 0.1))], "val")
    (path,) = chart.lines
    assert path.x == (1.0, 1.5, 2.0, 2.5, 3.0)
    assert path.y == (0.2, 0.18, 0.19, 0.3, 0.1)
    assert "greedy soup of 3" in chart.explanation
    assert "0.100 nat" in chart.explanation


def test_the_barriers_are_symmetric(found, figures) -> None:
    values, paths = figures["barriers"].values, found.diagnosis.ingredients
    for pair in found.diagnosis.pairs:
        i, j = paths.index(pair.a), paths.index(pair.b)
        assert values[i][j] == values[j][i] == pair.barrier
    assert all(values[i][i] is None for i in range(5))


def test_every_pair_is_in_the_charts_of_pairs(found, figures) -> None:
    pairs = found.diagnosis.pairs
    assert sorted((p.x, p.y) for p in figures["angles"].points) == sorted(
        (p.degrees, p.advantage) for p in pairs
    )
    assert sorted(p.x for p in figures["diversity"].points) == sorted(
        p.diversity.prediction for p in pairs
    )
    gaps = [gap for pair in pairs for gap in pair.gaps]
    assert sorted((p.x, p.y) for p in figures["gaps"].points) == sorted(
        (gap.approximation, gap.measured) for gap in gaps
    )


def test_pairs_are_grouped_by_what_differs_and_else_by_the_ratio_of_rates(found) -> None:
    names = found.diagnosis.names
    pairs = [
        replace(pair, differs=("lr",) if n % 2 else ("lr", "seed"))
        for n, pair in enumerate(found.diagnosis.pairs)
    ]
    rates = {path: {"lr": 10.0**-i} for i, path in enumerate(found.diagnosis.ingredients)}
    assert set(pair_groups(pairs, rates)) == {"differ in lr", "differ in lr, seed"}
    pairs = [replace(pair, differs=("lr", "seed")) for pair in pairs]
    assert list(pair_groups(pairs, rates)) == ["lr within ×10", "lr further apart"]
    rates[pairs[0].a] = {}
    assert list(pair_groups(pairs, rates))[-1] == "pair"
    pairs[0] = replace(pairs[0], differs=None)
    assert list(pair_groups(pairs, rates)) == ["pair"]
    chart = angle_chart(pairs, "val", names, rates)
    assert {point.group for point in chart.points} == {"pair"}


def plane_of_a_bowl(*, lower: bool = True) -> Landscape:
    def loss(x: float, y: float) -> float:
        return 0.1 + x + 2 * y

    grid = [(x, y) for x in np.linspace(-1, 5, 5) for y in np.linspace(-2, 4, 5)]
    points = tuple(PlanePoint(float(x), float(y), loss(x, y), 0.9) for x, y in grid)
    places = {"base": (0.0, 0.0, 0.0), "a": (4.0, 0.0, 0.0), "b": (2.0, 2.0, 0.0)}
    places |= {"midpoint of a and b": (3.0, 1.0, 0.0), "c": (1.0, 1.0, 0.7)}
    kinds = {"base": "base", "midpoint of a and b": "midpoint"}
    models = tuple(
        PlaneModel(name, kinds.get(name, "run"), x, y, away, loss(x, y), 0.9)
        for name, (x, y, away) in places.items()
    )
    return Landscape(("base", "a", "b"), points, models, lower)


def test_the_landscape_is_linear_between_the_points_that_were_scored() -> None:
    names = {name: name for name in ("base", "a", "b", "c")}
    chart = landscape_heatmap(plane_of_a_bowl(), "val", names)
    assert isinstance(chart, Heatmap)
    assert chart.plane == (-1.0, 5.0, -2.0, 4.0)
    values = np.array(chart.values, float)
    n = len(values)
    centres = (np.arange(n) + 0.5) / n * 6
    expected = 0.1 + (centres - 1)[None] + 2 * (centres - 2)[:, None]
    assert values == pytest.approx(expected, abs=1e-9)
    assert [(m.name, m.hollow) for m in chart.marks] == [
        ("base", False), ("a", False), ("b", False), ("their average", False), ("c", True),
    ]  # fmt: skip
    assert "lies lower than both: 5.1000 nat" in chart.explanation
    other = landscape_heatmap(plane_of_a_bowl(lower=False), "val", names)
    assert "is not lower than both" in other.explanation


def test_contributions_are_sorted_the_most_useful_first() -> None:
    rows = [Contribution(p, "uniform", d, None, None) for p, d in (("a", 0.1), ("b", 0.3))]
    names = {"a": "a", "b": "b"}
    for higher, order in ((True, ["b", "a"]), (False, ["a", "b"])):
        chart = contribution_chart(rows, "val", names, higher_is_better=higher)
        assert [name for name, _ in chart.rows] == order


def test_tables_hold_scores_barriers_and_calibration(found) -> None:
    diagnosis = found.diagnosis
    scores, lines, calibration = diagnosis.tables()
    assert len(scores.rows) == len(diagnosis.models)
    first = next(iter(diagnosis.models.values()))
    assert [cell.value for cell in scores.rows[0].cells] == [s.value for s in first.scores.values()]
    assert [row.cells[1] for row in lines.rows] == [line.barrier for line in diagnosis.lines]
    assert [row.cells[0] for row in calibration.rows] == [
        row.before.ece for row in diagnosis.calibration
    ]
