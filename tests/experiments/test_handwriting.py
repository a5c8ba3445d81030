"""The demo over several seeds, in its small case."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.experiments import standins

from experiments import handwriting, tables
from stockpot.demo import HEADLINE
from stockpot.tasks.handwriting import SHIFTS

TINY = replace(standins.TINY, n_held_out=40, n_runs=2)


def test_the_small_case_gives_the_table(tmp_path: Path) -> None:
    text = handwriting.main(
        ["--out", str(tmp_path), "--seeds", "0", "1", "--workers", "1"], lab=TINY
    )
    told = json.loads((tmp_path / "handwriting.json").read_text())
    assert [row["model"] for row in told["rows"]] == list(handwriting.MODELS)
    assert set(handwriting.MODELS) > set(HEADLINE)
    first, second = (demo["scores"] for demo in told["demos"])
    for row in (row for row in told["rows"] if row["model"] in HEADLINE):
        for split, cell in row["scores"].items():
            if split == handwriting.WITH_FONTS:
                a, b = (
                    sum(s[row["model"]][shift]["value"] for shift in SHIFTS) / len(SHIFTS)
                    for s in (first, second)
                )
            else:
                a, b = (s[row["model"]][split]["value"] for s in (first, second))
            assert cell["mean"] == pytest.approx((a + b) / 2)
        a, b = (
            s[row["model"]]["test"]["value"] - s["best-single"]["test"]["value"]
            for s in (first, second)
        )
        assert row["gains"]["test"]["mean"] == pytest.approx((a + b) / 2)
    runs = [scores[f"run-0{i}"]["test"]["value"] for scores in (first, second) for i in range(2)]
    assert told["rows"][1]["scores"]["test"]["mean"] == pytest.approx(sum(runs) / 4)
    assert all(f"| {model} | " in text for model in HEADLINE)
    assert (tmp_path / "handwriting.md").read_text() == text + "\n"
    again = handwriting.main(
        ["--out", str(tmp_path), "--seeds", "0", "1", "--workers", "1"], lab=TINY
    )
    assert again.splitlines()[:9] == text.splitlines()[:9]


@pytest.mark.parametrize(
    ("shift", "test", "expected"),
    [
        ((0.02, 0.01, 0.03), (0.0, -0.01, 0.01), "it beats best-single.*does not lose"),
        ((0.02, -0.01, 0.05), (-0.02, -0.03, -0.01), "it does not beat best-single.*it loses"),
    ],
)
def test_the_recipe_that_was_named_is_judged_by_intervals(shift, test, expected: str) -> None:
    gains = {"shift_average": tables.Cell(*shift), "test": tables.Cell(*test)}
    row = handwriting.Row(handwriting.NAMED, {}, gains)
    assert re.search(expected, handwriting.verdict([row]))


def test_a_narrower_sweep_can_be_asked_for(tmp_path: Path) -> None:
    small = replace(TINY, n_runs=1)
    arguments = ["--out", str(tmp_path), "--seeds", "0", "1", "--workers", "1"]
    handwriting.main([*arguments, "--lr-exponents", "2.2", "3.2"], lab=small)
    told = json.loads((tmp_path / "handwriting.json").read_text())
    assert told["lab"]["lr_exponents"] == [2.2, 3.2]
