from __future__ import annotations

from pathlib import Path

import pytest
from tests.test_demo import TINY

from stockpot import demo


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick takes seconds here."""
    monkeypatch.setattr("stockpot.tasks.handwriting.lab.QUICK", TINY)


def test_the_demo_prints_a_table_and_what_scripts_may_rely_on(run, tmp_path: Path) -> None:
    arguments = ["demo", "--quick", "-o", tmp_path / "demo", "--workers", "1"]
    result = run(*arguments)
    assert result.code == 0, result.err
    first, _, *lines = result.out.splitlines()
    assert first.split(":")[0].split()[0] in {"GAIN", "NO", "WORSE"}
    assert "named beforehand" in first
    assert lines[0].split() == ["model", "held-out", "test", "shift_average", "fonts"]
    assert [line.split()[0] for line in lines[1:7]] == list(demo.HEADLINE)
    assert all("±" in line for line in lines[1:7])
    again = run(*arguments, "--json")
    assert {"scores", "soups", "report", "seconds"} <= set(again.json)
    assert set(demo.HEADLINE) <= set(again.json["scores"])
    assert Path(again.json["report"]) == tmp_path / "demo" / "report.html"
    assert run("verify", again.json["soups"]["greedy"], "--json").json["verified"] is True


def test_a_folder_of_something_else_is_refused(run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = run("demo", "--quick", "-o", tmp_path, "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "OutputExistsError"
