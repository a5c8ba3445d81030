from __future__ import annotations

import io
import sys

import pytest

from stockpot._types import no_progress
from stockpot.cli.output import note, progress_bar


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
