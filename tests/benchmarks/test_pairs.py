from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.pairs import interval, main

ROOT = Path(__file__).parents[2]


def test_the_interval_is_of_the_median() -> None:
    assert interval([1.02] * 15) == (1.02, 1.02, 1.02)
    median, low, high = interval([0.9, 1.0, 1.1] * 5)
    assert median == 1.0
    assert 0.9 <= low <= 1.0 <= high <= 1.1


def test_a_checkout_is_as_fast_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ROOT), str(ROOT), "--pairs", "1", "--models", "2", "--size", "2MB"]
    monkeypatch.setattr(sys, "argv", ["pairs.py", *words, "--data", str(tmp_path)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seconds", "cpu"]
    assert all("1 pairs" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
