"""`stockpot report`: one call of `render`, shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.example import example

from stockpot.cli import main
from stockpot.report import save


def test_it_prints_the_path_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(example(), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_an_older_page_is_kept_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(example(), tmp_path)
    page = tmp_path / "page.html"
    older = "<!doctype html><title>Older · stockpot</title>"
    page.write_text(older)
    assert main(["report", str(tmp_path), "-o", str(page)]) == 1
    assert "--force" in capsys.readouterr().err
    assert page.read_text() == older
    assert main(["report", str(tmp_path), "-o", str(page), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page), "data": []}


def test_a_folder_without_a_record_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "ReportError"
    assert "report.json" in error["message"]


def test_a_card_and_the_numbers_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(example(), tmp_path)
    card, data = str(tmp_path / "card.md"), str(tmp_path / "numbers")
    arguments = ["report", str(tmp_path), "-o", card, "--data", data, "--axes", "linear", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["report"]).read_text().startswith("# Handwriting")
    assert {Path(path).name for path in told["data"]} >= {"scatter.csv", "scores.json"}
    assert all(Path(path).is_file() for path in told["data"])
