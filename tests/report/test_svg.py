"""SVG for a page: colours by name, ids that do not clash, text that stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import matplotlib as mpl

from stockpot.report.drawing import draw_scatter
from stockpot.report.info import get_scatter_info
from stockpot.report.svg import PAGE, to_svg

from .example import example


def _svg(name: str = "scatter") -> str:
    return to_svg(draw_scatter(get_scatter_info(example()), palette=PAGE), name=name, label="a < b")


def test_the_same_numbers_give_the_same_text() -> None:
    assert _svg() == _svg()


def test_every_colour_comes_from_the_page() -> None:
    svg = _svg()
    assert not re.search(r"#[0-9a-fA-F]{3,8}[\";]", svg)
    assert "var(--soup)" in svg
    assert "var(--ink)" in svg


def test_it_is_well_formed_and_refers_only_to_itself() -> None:
    root = ET.fromstring(_svg())
    ids = [node.get("id") for node in root.iter() if node.get("id") is not None]
    assert len(ids) == len(set(ids))
    assert all(str(i).startswith("scatter-") for i in ids)
    text = _svg()
    used = re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
    assert set(used) <= set(ids)
    assert root.get("aria-label") == "a < b"


def test_two_figures_share_no_id() -> None:
    one, two = (set(re.findall(r'\bid="([^"]+)"', _svg(name))) for name in ("a", "b"))
    assert one
    assert not one & two


def test_models_are_stops_of_the_tab_key_and_curve_points_are_not() -> None:
    root = ET.fromstring(_svg())
    points = [node for node in root.iter() if node.get("class") == "pt"]
    stops = [node for node in points if node.get("tabindex") == "0"]
    assert len(stops) == len(get_scatter_info(example()).points)
    assert len(points) > len(stops)
    assert all((node.get("aria-label") or "").count("test") == 1 for node in points)


def test_the_settings_of_matplotlib_are_left_as_they_were() -> None:
    before = dict(mpl.rcParams)
    _svg()
    assert dict(mpl.rcParams) == before
