"""Figures as data: what they hold comes back from JSON as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stockpot._figures import (
    AnyFigure,
    Axis,
    Column,
    Estimate,
    Heatmap,
    IntervalChart,
    Line,
    LineChart,
    Point,
    Row,
    Rule,
    ScatterChart,
    Table,
    figure_from_json,
)
from stockpot.errors import StockpotError

X, Y = Axis(name="α"), Axis(name="test (%)", percent=True, scale="logit")
FIGURES: tuple[AnyFigure, ...] = (
    Table(
        name="scores",
        title="Scores",
        columns=(Column(name="test", percent=True), Column(name="note"), Column(name="n")),
        rows=(
            Row(name="a", cells=(Estimate(value=0.9, low=0.8, high=0.95), "x", 3), role="run"),
            Row(name="b", cells=(None, True, 0.5), role="soup", chosen=True),
        ),
    ),
    LineChart(
        name="curve",
        title="Curve",
        explanation="Why.",
        x=X,
        y=Y,
        lines=(Line(name="test", x=(0.0, 1.0), y=(0.5, 0.6), low=(0.4, 0.5), high=(0.6, 0.7)),),
        rules=(Rule(name="chosen", value=0.5),),
    ),
    ScatterChart(
        name="points", title="Points", x=X, y=Y, points=(Point(name="a", x=0.1, y=0.2, role="run"),)
    ),
    Heatmap(
        name="heat",
        title="Heat",
        rows=("a",),
        columns=("b", "c"),
        values=((1.0, None),),
        scale=Axis(name="nat"),
    ),
    Heatmap(
        name="plane",
        title="Plane",
        values=((1.0, 2.0), (3.0, 4.0)),
        plane=(0.0, 1.0, 0.0, 1.0),
        scale=Axis(name="nat"),
        marks=(Point(name="base", x=0.0, y=0.0, labelled=True),),
    ),
    IntervalChart(name="worth", title="Worth", x=X, rows=(("a", Estimate(value=0.1)),)),
)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_comes_back_from_json_as_it_was(figure: AnyFigure) -> None:
    assert figure_from_json(json.loads(json.dumps(figure.to_json()))) == figure


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "pie"}, "'pie' is no kind of figure"),
        ({"kind": []}, "no kind of figure"),
        ({"name": "../../x"}, "no name for a figure"),
        ({"name": ""}, "no name for a figure"),
        ({"values": [["a", 1]]}, r"values\[0\]\[0\]: expected a number"),
        ({"values": [[1]]}, "needs a value for each row and column"),
        ({"scale": 3}, "scale: expected an object"),
        ({"title": None}, "title: expected text"),
    ],
)
def test_a_damaged_figure_is_refused_with_the_place(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(StockpotError, match=why):
        figure_from_json({**FIGURES[3].to_json(), **changed})


def test_ragged_tables_and_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="more or fewer cells"):
        Table(name="t", title="T", columns=(), rows=(Row(name="r", cells=(1,)),))
    with pytest.raises(ValueError, match="2 positions"):
        Line(name="l", x=(0.0, 1.0), y=(1.0,))
