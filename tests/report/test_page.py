"""The page: one file, every number that of the record, nothing fetched."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from stockpot.errors import OutputExistsError, ReportError
from stockpot.report import render, save
from stockpot.report.page import to_html
from stockpot.report.records import ScoreRecord

from .example import example


def test_a_folder_is_rendered_beside_its_record(tmp_path: Path) -> None:
    save(example(), tmp_path)
    page = render(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text() == to_html(example())
    with pytest.raises(OutputExistsError, match=r"report\.html exists"):
        render(tmp_path)
    assert render(tmp_path, force=True) == page
    assert render(tmp_path / "report.json", tmp_path / "other.html").name == "other.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "other.html", "report.html", "report.json",
    ]  # fmt: skip


def test_a_report_without_a_folder_needs_a_path(tmp_path: Path) -> None:
    assert render(example(), tmp_path / "page.html").exists()
    with pytest.raises(ReportError, match="out="):
        render(example())


def test_the_page_is_one_small_file_that_fetches_nothing() -> None:
    html = to_html(example())
    assert len(html.encode()) < 5_000_000
    assert "default-src 'none'" in html
    addresses = set(re.findall(r"https?://[^\"'<> ]+", html))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=", html)


def test_every_score_of_the_record_is_on_the_page() -> None:
    report = example()
    shown = set(re.findall(r'data-value="([^"]*)"', to_html(report)))
    for name in report.headline:
        for score in report.model(name).scores.values():
            assert isinstance(score, ScoreRecord)
            assert repr(score.value) in shown


def test_names_cannot_become_markup() -> None:
    evil = '<script>alert("x")</script>'
    report = example()
    models = (dataclasses.replace(report.models[0], name=evil), *report.models[1:])
    curves = (dataclasses.replace(report.curves[0], name=evil),)
    html = to_html(
        dataclasses.replace(
            report, models=models, curves=curves, headline=(evil,), title=evil, verdict=(evil,)
        )
    )
    assert "<script>alert" not in html
    assert html.count("<script>") == 1


def test_what_is_unknown_is_left_out() -> None:
    report = dataclasses.replace(
        example(),
        shifts=(),
        reported_on=("test",),
        curves=(),
        steps={},
        mixing={},
        phases=(),
        verdict=(),
        notes=(),
        provenance={},
        commands=(),
        models=tuple(dataclasses.replace(m, path=None) for m in example().models[:2]),
        headline=("base",),
    )
    html = to_html(report)
    assert "<svg" not in html
    assert "<figure" not in html
    assert "Where this comes from" not in html
    assert "What each soup consists of" not in html


def test_an_empty_study_is_still_a_page() -> None:
    report = dataclasses.replace(
        example(), models=(), headline=(), shifts=(), reported_on=(), curves=(), steps={}
    )
    assert "<h1>Handwriting</h1>" in to_html(report)
