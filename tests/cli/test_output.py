from __future__ import annotations

import io
import sys

import pytest

from stockpot._types import no_progress
from stockpot.cli.output import note, progress_bar, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_at_a_terminal_sees_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar() as progress:
        progress(0, None, "bytes")
        progress(5, 10, "bytes")
        progress(10, 10, "bytes")
    assert "bytes" in terminal.getvalue()


def test_a_program_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar() as progress:
        assert progress is no_progress


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("left out: a")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "left out: a\n")


def test_a_wide_table_is_shown_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    header = ["model", *(f"split-{i}" for i in range(9))]
    rows = [["run-0", *["0.9812 ±0.012"] * 9], ["run-1", *["0.9712 ±0.012"] * 9]]
    shown = table(header, rows)
    assert max(map(len, shown.splitlines())) <= 80
    assert [line.split()[0] for line in shown.splitlines() if line] == [
        "model",
        "run-0",
        "run-1",
    ] * 2
    assert all(f"split-{i}" in shown for i in range(9))


def test_a_cell_cannot_break_its_row() -> None:
    assert table(["name"], [["a\nb\x1b[2J\u202e"]]) == "name\na\\nb\\x1b[2J\\u202e"
