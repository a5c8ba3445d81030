"""The numbers and the pictures of a report as files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from stockpot._figures import Heatmap
from stockpot.errors import OutputExistsError, ReportError
from stockpot.report import save_picture, write_data
from stockpot.report.export import check_picture, to_picture
from stockpot.report.model import report_figures

from .example import example


def test_every_score_of_the_record_is_in_the_files(tmp_path: Path) -> None:
    report = example()
    written = write_data(report, tmp_path)
    n_figures = len(report_figures(report))
    assert {path.stem for path in written} == {
        "scores", "models", "coefficients", "files",
        "gains", "scatter", *(f"figure-{i}" for i in range(3, n_figures + 1)),
    }  # fmt: skip
    found = {row["name"]: row for row in json.loads((tmp_path / "scores.json").read_bytes())}
    for name in report.headline:
        for split, score in report.model(name).scores.items():
            assert score is not None
            assert found[name][split.replace("_", " ")] == score.value
    with pytest.raises(OutputExistsError):
        write_data(report, tmp_path)
    assert write_data(report, tmp_path, force=True) == written


def test_numbers_are_not_written_through_a_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "models.csv").symlink_to(secret)
    with pytest.raises(OutputExistsError, match="is a link"):
        write_data(example(), tmp_path / "out", force=True)
    assert secret.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["models.csv"]


def _heatmap() -> Heatmap:
    return next(figure for figure in example().figures if isinstance(figure, Heatmap))


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_a_chart_becomes_a_picture_and_always_the_same(tmp_path: Path, ending: str) -> None:
    one, two = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    save_picture(_heatmap(), one)
    save_picture(_heatmap(), two)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(OutputExistsError):
        save_picture(_heatmap(), one)
    save_picture(_heatmap(), one, force=True)


def test_a_picture_stands_alone_in_light_and_dark() -> None:
    text = to_picture(_heatmap())
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text


def test_other_endings_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"end it in \.svg, \.png or \.pdf"):
        check_picture(tmp_path / "a.gif", force=False)
    odd = dataclasses.replace(_heatmap(), title="<script>")
    assert "<script>" not in to_picture(odd)
