"""The page of a diagnosis in a real browser: nothing overlaps, nothing is clipped, no complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stockpot.report import render
from stockpot.report.records import ModelRecord, Report, ScoreRecord

from .diagnosis_example import told
from .test_page_in_browser import (
    browser,
    page,
    pytestmark,
    test_accessibility_has_no_serious_findings,
    test_no_text_of_a_figure_is_clipped_or_overlaps_another,
    test_the_page_is_as_wide_as_the_window_and_tables_scroll_inside,
)

__all__ = [
    "browser",
    "page",
    "pytestmark",
    "test_accessibility_has_no_serious_findings",
    "test_no_text_of_a_figure_is_clipped_or_overlaps_another",
    "test_the_page_is_as_wide_as_the_window_and_tables_scroll_inside",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = told()
    report = Report(
        title="Will these soup?",
        verdict=tuple(data["verdict"]["sentences"]),
        chosen_on="val",
        reported_on=("test",),
        shifts=(),
        headline=("run-00",),
        models=(ModelRecord("run-00", "run", {"val": ScoreRecord(0.9), "test": ScoreRecord(0.9)}),),
        diagnosis=data,
    )
    path: Path = render(report, tmp_path_factory.mktemp("page") / "report.html")
    return path.as_uri()


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_pointing_at_a_pair_names_both_runs(page: Any) -> None:
    point = page.locator("#angles-pt-0-0")
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip").inner_text().startswith("run-0")
