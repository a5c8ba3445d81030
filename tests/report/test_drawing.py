"""Drawings: marks where the numbers say, names that do not collide, and SVG that is the same."""

from __future__ import annotations

import dataclasses

import pytest

from stockpot.errors import ReportError
from stockpot.report.canvas import DARK, LIGHT, Palette
from stockpot.report.drawing import draw_curve, draw_scatter
from stockpot.report.info import CurveInfo, ScatterInfo, get_alpha_curve_info, get_scatter_info

from .example import example


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(palette: Palette) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for marks."""
    for name in ("ink", "muted"):
        assert _contrast(getattr(palette, name), palette.paper) >= 4.5
    for name in ("base", "run", "soup", "wise", "ensemble"):
        assert _contrast(getattr(palette, name), palette.paper) >= 3


def test_every_mark_says_which_model_it_is() -> None:
    info = get_scatter_info(example())
    drawing = draw_scatter(info, palette=LIGHT)
    gids = {line.get_gid() for line in drawing.figure.axes[0].lines} - {None}
    assert gids == set(drawing.tips)
    tips = "\n".join(drawing.tips.values())
    for point in info.points:
        assert f"{point.name}\ntest {100 * point.x:.1f}, shift average {100 * point.y:.1f}" in tips
    assert "WiSE-FT of greedy, α = 0.35" in tips


def test_marks_of_different_kinds_differ_in_more_than_colour() -> None:
    info = get_scatter_info(example())
    drawing = draw_scatter(info, palette=LIGHT)
    shapes = {
        str(line.get_marker())
        for line in drawing.figure.axes[0].lines
        if str(line.get_gid()).count("-") == 1
    }
    assert len(shapes) == len({point.kind for point in info.points}) == 5


def test_names_on_the_scatter_do_not_overlap() -> None:
    drawing = draw_scatter(get_scatter_info(example()), palette=LIGHT)
    drawing.figure.canvas.draw()
    texts = drawing.figure.axes[0].texts
    assert {text.get_text() for text in texts} == {
        "base", "best-single", "uniform", "greedy", "wise-ft", "ensemble",
    }  # fmt: skip
    boxes = [text.get_window_extent() for text in texts]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_ticks_are_round_and_lie_where_the_logit_puts_them() -> None:
    drawing = draw_scatter(get_scatter_info(example()), palette=LIGHT)
    axis = drawing.figure.axes[0].xaxis
    labels = [float(tick.get_text()) for tick in axis.get_ticklabels()]
    assert 90 in labels
    assert len(labels) >= 4
    assert labels == sorted(labels)


def test_a_perfect_score_stays_on_a_logit_axis() -> None:
    info = get_scatter_info(example())
    perfect = info.points[0]._replace(x=1.0, y=0.0)
    drawing = draw_scatter(info._replace(points=(perfect, *info.points[1:])), palette=LIGHT)
    assert any("test 100.0, shift average 0.0" in tip for tip in drawing.tips.values())


def test_plain_axes_serve_losses() -> None:
    info = get_scatter_info(example())
    points = tuple(p._replace(x=p.x + 1, y=p.y + 1) for p in info.points)
    drawing = draw_scatter(ScatterInfo("test", "shift_average", points, (), False), palette=LIGHT)
    assert "%" not in drawing.figure.axes[0].get_xlabel()


def test_a_name_with_dollar_signs_is_written_as_it_is() -> None:
    report = example()
    odd = dataclasses.replace(report.models[0], name="$5 <base>")
    report = dataclasses.replace(
        report, models=(odd, *report.models[1:]), headline=("$5 <base>",), curves=()
    )
    drawing = draw_scatter(get_scatter_info(report), palette=LIGHT)
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["$5 <base>"]


def test_the_curve_marks_the_chosen_position() -> None:
    report = example()
    drawing = draw_curve(get_alpha_curve_info(report, report.curves[0]), palette=LIGHT)
    axes = drawing.figure.axes[0]
    assert any(list(line.get_xdata()) == [0.75, 0.75] for line in axes.lines)
    assert drawing.tips["pt-1-20"].startswith("α = 1.00\nshift average ")
    assert "best-single" in axes.get_xlabel()


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ReportError, match="no model"):
        draw_scatter(ScatterInfo("test", "shift_average", (), (), False), palette=LIGHT)
    with pytest.raises(ReportError, match="has no scores"):
        draw_curve(CurveInfo("greedy", "α", (), None), palette=LIGHT)
