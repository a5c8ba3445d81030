"""SVG for a page: colours by name, ids that do not clash, text that stays text, no styles."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from stockpot._figures import Axis, Point, ScatterChart
from stockpot.report.canvas import DARK, LIGHT, PAGE, Palette, cut, text_width, to_svg
from stockpot.report.charts import draw
from stockpot.report.model import scatter

from .example import example


def _svg(prefix: str = "figure-1") -> str:
    chart = scatter(example())
    assert chart is not None
    return to_svg(draw(chart, PAGE), prefix=prefix, label="a < b")


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


def test_the_same_numbers_give_the_same_text() -> None:
    assert _svg() == _svg()


def test_every_colour_comes_from_the_page_and_nothing_is_a_style() -> None:
    svg = _svg()
    assert not re.search(r"#[0-9a-fA-F]{3,8}[\";]", svg)
    assert "var(--soup)" in svg
    assert "var(--ink)" in svg
    assert "style" not in svg


def test_it_is_well_formed_and_refers_only_to_itself() -> None:
    text = _svg()
    root = ET.fromstring(text)
    ids = [node.get("id") for node in root.iter() if node.get("id") is not None]
    assert len(ids) == len(set(ids))
    assert all(str(i).startswith("figure-1-") for i in ids)
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
    chart = scatter(example())
    assert chart is not None
    assert len(stops) == len(chart.points)
    assert len(points) > len(stops)
    assert all((node.get("aria-label") or "").count("test") == 1 for node in points)


def test_names_are_text_whatever_they_hold() -> None:
    names = [
        "<b>&\"'",
        "$x^2$",
        "a\x00b\x1b[0m",
        "数字" * 9,
        "\u202egnp",
        "--><script>",
        "\U0001f372",
    ]
    points = tuple(
        Point(name=name, x=float(i), y=float(i), labelled=True, group=name, role="run")
        for i, name in enumerate(names)
    )
    axis = Axis(name='<i>"&$\x07')
    chart = ScatterChart(name="odd", title="<t>", x=axis, y=axis, points=points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = ET.fromstring(to_svg(draw(chart, PAGE), prefix="p", label="<l>"))
    shown = "".join(root.itertext())
    assert "<b>&\"'" in shown
    assert "$x^2$" in shown
    tags = {node.tag.rpartition("}")[2] for node in root.iter()}
    assert tags <= {"svg", "g", "path", "defs", "use", "text", "tspan", "clipPath", "rect"}


def test_the_settings_of_matplotlib_are_left_as_they_were() -> None:
    before = dict(mpl.rcParams)
    _svg()
    assert dict(mpl.rcParams) == before


def test_long_names_keep_their_end_and_wide_letters_count_twice() -> None:
    assert cut("encoder.layer.11.output", 8) == "….output"
    assert cut("a\nb", 9) == "a b"
    assert text_width("数") == 2 * text_width("a")
