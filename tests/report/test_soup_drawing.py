"""Every mark of the figures of a soup is named, and where the numbers say."""

from __future__ import annotations

from typing import Any

import pytest

from stockpot.report.canvas import DARK, LIGHT
from stockpot.report.soup_drawing import draw_heat, draw_path, draw_phases
from stockpot.report.soup_info import get_heat_info, get_path_info, get_phase_info

from .example import example


def _marks(axes: Any) -> set[str]:
    artists = [*axes.lines, *axes.patches]
    return {artist.get_gid() for artist in artists if artist.get_gid()}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_mark_has_a_name(palette: Any) -> None:
    report = example()
    drawings = [
        draw_path(get_path_info(report, "greedy"), palette=palette),
        draw_heat(get_heat_info(report, "learned"), palette=palette),
        draw_phases(get_phase_info(report), palette=palette),
    ]
    for drawing in drawings:
        assert _marks(drawing.figure.axes[0]) == set(drawing.tips)
    assert drawings[0].tips["pt-0"] == "run-00\naccepted, 97.8"
    assert "at most 97.9" in drawings[0].tips["pt-11"]
    assert "p = 0.21" in drawings[0].tips["pt-1"]
    assert drawings[1].tips["pt-0-1"].startswith("run-01\nblock.0: -0.05")
    assert "soup, phase 3\n90.00 % zero, 95.9" in drawings[2].tips.values()


def test_negative_shares_have_another_colour() -> None:
    info = get_heat_info(example(), "learned")
    patches = {p.get_gid(): p for p in draw_heat(info, palette=LIGHT).figure.axes[0].patches}
    positive, negative = patches["pt-0-0"], patches["pt-0-1"]
    assert positive.get_facecolor()[:3] != negative.get_facecolor()[:3]
    assert positive.get_alpha() > negative.get_alpha()


def test_many_rows_are_labelled_now_and_then() -> None:
    info = get_heat_info(example(), "learned")
    many = info._replace(
        groups=tuple(f"layer.{i}" for i in range(100)), values=(info.values[0],) * 100
    )
    labels = draw_heat(many, palette=LIGHT).figure.axes[0].get_yticklabels()
    assert len(labels) <= 16


def test_the_intervals_of_soups_are_not_cut_off() -> None:
    info = get_phase_info(example())
    low, high = draw_phases(info, palette=LIGHT).figure.axes[0].get_ylim()
    bounds = [bound for point in info.soups if point.interval for bound in point.interval]
    assert len(bounds) == 6
    assert low <= min(bounds)
    assert max(bounds) <= high
