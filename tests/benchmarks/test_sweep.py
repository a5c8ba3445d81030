"""The benchmark of a sweep, with runs of an epoch."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from benchmarks import sweep
from stockpot.tasks.handwriting import handwriting
from stockpot.train.sweep.named import small_law


def test_the_work_of_a_sweep_is_timed_and_its_checkpoints_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "task", functools.partial(handwriting, n_train=40, n_fonts=2))
    monkeypatch.setattr(sweep, "space", small_law().scaled({"epochs": 1 / 24}))
    for folder in ("a", "b"):
        sweep.sweep(str(tmp_path / folder), 2, 1, 1)
        assert float(capsys.readouterr().out) > 0
    first, second = (sweep.digests(tmp_path / folder) for folder in ("a", "b"))
    assert first == second
    assert list(first) == ["run-00.safetensors", "run-01.safetensors"]
    sweep.sweep(str(tmp_path / "a"), 2, 1, 1)
    assert capsys.readouterr().out == ""  # nothing was left to do


def test_gains_are_medians_over_rounds() -> None:
    slow = [sweep.Took(30, 20), sweep.Took(40, 30), sweep.Took(30, 30)]
    fast = [sweep.Took(20, 10), sweep.Took(20, 10), sweep.Took(30, 10)]
    assert sweep.gains(slow, fast) == {"whole": 1.5, "work": 3.0}
