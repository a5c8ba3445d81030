"""Learned soups of several sweeps, in their small case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.experiments.standins import TINY

from experiments import learned
from stockpot.tasks.handwriting.lab import make_base
from stockpot.train.sweep.run import run_sweep


def sweep(folder: Path, seed: int) -> None:
    run_sweep(
        TINY.task_maker(seed=seed), str(folder / "base.safetensors"), TINY.sweep(seed=seed),
        out=folder / "runs",
    )  # fmt: skip


def test_the_small_case_gives_the_tables(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / "demos" / f"seed-{seed}"
        make_base(folder / "base.safetensors", lab=TINY, seed=seed)
        sweep(folder, seed)
    arguments = [
        "--demos",
        str(tmp_path / "demos"),
        "--seeds",
        "0",
        "1",
        "--epochs",
        "2",
        "--jobs",
        "1",
    ]
    text = learned.main(["--out", str(tmp_path / "out"), *arguments], lab=TINY)
    assert "mean over 2 sweeps" in text
    studies = json.loads((tmp_path / "out" / "learned.json").read_text())
    for study in studies:
        values = study["values"]
        assert set(values) == set(learned.ROWS)
        assert {"fitting", "deciding", "test", "fonts", "shift_average"} <= set(values["learned"])
        # Taken only where it is not worse than the others on the part that decides.
        for row, taken in study["taken"].items():
            best = max(values[name]["deciding"] for name in ("uniform", "greedy"))
            assert (taken == "learned") == (values[row]["deciding"] >= best)
    test = [study["values"]["learned"]["test"] for study in studies]
    assert f"| learned | {100 * studies[0]['values']['learned']['fitting']:.2f}"[:10] in text
    assert f"{50 * sum(test):.2f}" in text


def test_gains_are_paired_and_marked_where_their_interval_holds_zero() -> None:
    def study(name: str, greedy: float, found: float) -> learned.Study:
        values = {"greedy": {"test": greedy}, "learned": {"test": found}}
        p_values = {"learned": {"test": 0.01 if name == "a" else 0.5}}
        return learned.Study("toy", name, values, {}, p_values, {}, {}, {})

    sure = [study("a", 0.5, 0.60), study("b", 0.7, 0.81), study("c", 0.6, 0.70)]
    assert "(n)" not in learned._gain(sure, "learned", "test")
    assert learned._gain(sure, "learned", "test").startswith("+10.33 [")
    assert learned._gain(sure, "learned", "test").endswith("{1 of 3}")
    unsure = [study("a", 0.5, 0.6), study("b", 0.7, 0.6)]
    assert "(n)" in learned._gain(unsure, "learned", "test")


def test_one_sweep_of_any_task_is_shown_with_intervals_over_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base(tmp_path / "base.safetensors", lab=TINY, seed=0)
    sweep(tmp_path, 0)
    text = learned.main(
        ["--out", str(tmp_path / "out"), "--task", "handwriting", "--epochs", "1", "--jobs", "1",
         "--runs", str(tmp_path / "runs")]
    )  # fmt: skip
    assert "interval over examples" in text
    assert "Points above greedy" not in text
