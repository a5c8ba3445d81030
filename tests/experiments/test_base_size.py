"""Soups from bases that saw more or less, in a small case."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from tests.experiments.test_handwriting import TINY

from experiments import base_size
from stockpot.tasks.handwriting import FULL


def test_bases_see_less_in_as_many_steps() -> None:
    labs = [base_size.lab_with(share, FULL) for share in base_size.SHARES]
    assert labs[0] == FULL
    assert [lab.n_base for lab in labs] == [12_000, 3000, 750, 12_000]
    steps = [lab.base.epochs * (lab.n_base // lab.base.batch_size) for lab in labs[:3]]
    assert steps[2] == pytest.approx(steps[0], rel=0.06)
    assert labs[3].base.max_steps == 1
    assert {lab.n_runs for lab in labs} == {FULL.n_runs}


def test_each_base_has_its_rows_and_nothing_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), "--seeds", "0", "--workers", "1",
                 "--shares", "1", "1/4", "0"]  # fmt: skip
    text = base_size.main(arguments, lab=TINY)
    found = json.loads((tmp_path / "base_size.json").read_text())
    assert [(one["share"], one["seed"]) for one in found] == [("1", 0), ("1/4", 0), ("0", 0)]
    scores = {one["share"]: one["scores"] for one in found}
    assert scores["1"]["base"] != scores["0"]["base"], "one step is less than all"
    assert text.count("\n| one step |") == 4
    monkeypatch.delattr(base_size, "run")
    assert base_size.main(arguments, lab=TINY) == text


def test_gains_are_paired_by_seed() -> None:
    def one(share: str, seed: int, best: float, soup: float) -> dict[str, object]:
        scores = {m: {"test": best, "shift_average": best} for m in base_size.MODELS}
        scores["uniform"] = {"test": soup, "shift_average": soup}
        return {"share": share, "seed": seed, "scores": scores, "kept": 1, "alpha": 0.5}

    found = [one("1", 1, 0.5, 0.75), one("1/16", 1, 0.25, 0.25), one("1/16", 0, 0.5, 0.25),
             one("1", 0, 0.75, 0.75)]  # fmt: skip
    assert base_size.gains(found, "1", "uniform", "test") == [0.0, 0.25]
    assert base_size.more(found, "1/16", "uniform", "test") == [0.25, 0.25]
    assert "| all − 1/16 | +25.00 [+25.00, +25.00] | +0.00" in base_size.markdown(found)
    assert Fraction("1/16") in base_size.SHARES
