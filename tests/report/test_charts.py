"""Charts: marks where the numbers say, names that do not collide, and all numbers as a table."""

from __future__ import annotations

import dataclasses

import pytest

from stockpot._figures import (
    Axis,
    Estimate,
    Heatmap,
    IntervalChart,
    Line,
    LineChart,
    Point,
    Rule,
    ScatterChart,
)
from stockpot.report.canvas import LIGHT, PAGE, to_svg
from stockpot.report.charts import draw, numbers
from stockpot.report.marks import shown
from stockpot.report.model import scatter

from .example import example


def _scatter() -> ScatterChart:
    chart = scatter(example())
    assert chart is not None
    return chart


def test_every_mark_says_which_model_it_is() -> None:
    chart = _scatter()
    drawing = draw(chart, LIGHT)
    gids = {line.get_gid() for line in drawing.figure.axes[0].lines} - {None}
    assert gids == set(drawing.tips)
    tips = "\n".join(drawing.tips.values())
    for point in chart.points:
        values = f"test (%) {100 * point.x:.1f}, shift average (%) {100 * point.y:.1f}"
        assert f"{point.name}\n{values}" in tips
    assert "α = 0.35, From the base to greedy" in tips


def test_marks_of_different_kinds_differ_in_more_than_colour() -> None:
    chart = _scatter()
    drawing = draw(chart, LIGHT)
    shapes = {
        str(line.get_marker())
        for line in drawing.figure.axes[0].lines
        if str(line.get_gid()).count("-") == 1
    }
    assert len(shapes) == len({point.role for point in chart.points}) == 5


def test_names_on_the_scatter_do_not_overlap() -> None:
    drawing = draw(_scatter(), LIGHT)
    drawing.figure.canvas.draw()
    texts = drawing.figure.axes[0].texts
    assert len(texts) == 6
    boxes = [text.get_window_extent() for text in texts]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_ticks_are_round_and_lie_where_the_logit_puts_them() -> None:
    axis = draw(_scatter(), LIGHT).figure.axes[0].xaxis
    labels = [float(tick.get_text()) for tick in axis.get_ticklabels()]
    assert 90 in labels
    assert len(labels) >= 4
    assert labels == sorted(labels)


def test_a_perfect_score_stays_on_a_logit_axis() -> None:
    chart = _scatter()
    perfect = dataclasses.replace(chart.points[0], x=1.0, y=0.0)
    drawing = draw(dataclasses.replace(chart, points=(perfect, *chart.points[1:])), LIGHT)
    assert any("test (%) 100.0, shift average (%) 0.0" in tip for tip in drawing.tips.values())


def test_one_entry_of_the_legend_for_each_kind() -> None:
    legend = draw(_scatter(), LIGHT).figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["single run", "base", "WiSE-FT", "ensemble", "soup", "WiSE-FT, all α"]


LINES = LineChart(
    name="lines",
    title="Lines",
    x=Axis(name="α"),
    y=Axis(name="loss"),
    lines=(
        Line(name="a", x=(0.0, 0.5, 1.0), y=(1.0, 2.0, 1.0), low=(0.5,) * 3, high=(3.0,) * 3),
        Line(name="b", x=(0.0, 1.0), y=(1.0, 0.5)),
    ),
    rules=(Rule(name="chosen", value=0.5),),
    diagonal=True,
)


def test_a_line_chart_marks_the_chosen_position_and_names_its_points() -> None:
    drawing = draw(LINES, LIGHT)
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in drawing.figure.axes[0].lines)
    assert drawing.tips["pt-l0-1"] == "a\nα 0.5, loss 2"
    texts = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert texts == ["a", "b", "chosen", "equal"]


def test_the_numbers_of_lines_stand_side_by_side() -> None:
    table = numbers(LINES)
    assert [column.name for column in table.columns] == ["a", "b"]
    assert [(row.name, row.cells) for row in table.rows] == [
        ("0", (1.0, 1.0)), ("0.5", (2.0, None)), ("1", (1.0, 0.5)),
    ]  # fmt: skip
    many = dataclasses.replace(LINES, lines=LINES.lines * 3)
    assert len(numbers(many).rows) == 15


def test_the_numbers_of_points_are_all_there() -> None:
    chart = _scatter()
    rows = {row.name: row.cells for row in numbers(chart).rows}
    assert len(numbers(chart).rows) == len(chart.points) + 42
    greedy = next(point for point in chart.points if point.name == "greedy")
    assert rows["greedy"][-2:] == (greedy.x, greedy.y)


def _heatmap(values: list[list[float | None]], **options: object) -> Heatmap:
    return Heatmap(
        name="heat",
        title="Heat",
        rows=tuple(f"row {i}" for i in range(len(values))),
        columns=tuple(f"column {j}" for j in range(len(values[0]))),
        values=tuple(map(tuple, values)),
        scale=Axis(name="nat"),
        **options,  # type: ignore[arg-type]
    )


def _opacity(chart: Heatmap) -> dict[str, float]:
    cells = draw(chart, LIGHT).figure.axes[0].patches
    return {str(cell.get_gid()): cell.get_facecolor()[3] for cell in cells}


def test_cells_are_as_strong_as_their_values_on_a_scale_from_zero() -> None:
    found = _opacity(_heatmap([[0.0, 1.0], [2.0, None]]))
    assert set(found) == {"pt-0-0", "pt-0-1", "pt-1-0"}
    assert found["pt-0-0"] < 0.05 < found["pt-0-1"] < found["pt-1-0"]


def test_tiny_values_are_pale_where_the_scale_has_a_least_end() -> None:
    assert max(_opacity(_heatmap([[0.0, 0.0004]], least=0.1)).values()) < 0.05
    assert max(_opacity(_heatmap([[0.0, 0.0004]])).values()) > 0.9


def test_negative_values_have_another_colour_and_the_bar_both_ends() -> None:
    drawing = draw(_heatmap([[-0.5, 1.0]]), LIGHT)
    cells = [cell.get_facecolor()[:3] for cell in drawing.figure.axes[0].patches]
    assert cells[0] != cells[1]
    bar = [tick.get_text() for tick in drawing.figure.axes[1].get_yticklabels()]
    assert (bar[0], bar[-1]) == ("−1", "1")


def test_every_heat_map_has_a_bar_with_its_unit() -> None:
    plane = Heatmap(
        name="plane", title="Plane", values=((1.0, 2.0), (None, 9.0)), plane=(0.0, 1.0, 0.0, 1.0),
        scale=Axis(name="loss (nat)", scale="log"), x=Axis(name="x"), y=Axis(name="y"),
        marks=(Point(name="base", x=0.1, y=0.1, role="base", labelled=True, note="loss 1"),
               Point(name="far", x=7.0, y=7.0)),
    )  # fmt: skip
    for chart in (plane, _heatmap([[1.0]])):
        assert draw(chart, LIGHT).figure.axes[1].get_title(loc="right") == chart.scale.name
    assert draw(plane, LIGHT).tips == {"pt-0": "base\nloss 1"}
    assert [row.name for row in numbers(plane).rows] == ["base", "far"]
    assert numbers(_heatmap([[1.0, None]])).rows[0].cells == (1.0, None)


def test_large_heat_maps_name_no_more_than_fits() -> None:
    axes = draw(
        _heatmap([[float(i + j) for j in range(60)] for i in range(200)]), LIGHT
    ).figure.axes
    assert len(axes[0].get_xticks()) <= 18
    assert len(axes[0].get_yticks()) <= 40


def test_intervals_stand_below_each_other_with_a_line_at_the_reference() -> None:
    rows = (("test", Estimate(value=0.02, low=0.003, high=0.037)), ("b", Estimate(value=-0.01)))
    chart = IntervalChart(
        name="gains", title="Gain", x=Axis(name="points", percent=True), rows=rows, reference=0.0
    )
    drawing = draw(chart, LIGHT)
    assert drawing.tips["pt-0"] == "test\npoints 2.0 (0.3 to 3.7)"
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in drawing.figure.axes[0].lines)
    assert [row.cells[0] for row in numbers(chart).rows] == [found for _, found in rows]


@pytest.mark.parametrize(
    "chart",
    [
        dataclasses.replace(LINES, lines=(), rules=(), diagonal=False),
        ScatterChart(name="s", title="S", x=Axis(name="x"), y=Axis(name="y"), points=()),
        IntervalChart(name="i", title="I", x=Axis(name="x"), rows=()),
        Heatmap(name="h", title="H", values=(), scale=Axis(name="s")),
        dataclasses.replace(LINES, lines=(Line(name="flat", x=(1.0,), y=(0.0,)),)),
        _heatmap([[None]]),
        _heatmap([[0.0]]),
    ],
    ids=lambda chart: chart.title,
)
def test_nothing_to_draw_is_an_empty_figure(chart: LineChart) -> None:
    assert "<svg" in to_svg(draw(chart, PAGE), prefix="p", label="l")
    numbers(chart)


def test_numbers_are_shown_with_as_many_digits_as_they_are_worth() -> None:
    assert shown(0.5, Axis(name="x", percent=True)) == "50.0"
    assert shown(-1234.5678, Axis(name="x")) == "−1235"
