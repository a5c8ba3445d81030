"""The benchmark of the harness, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments.pretraining import QUICK, new_model, save
from experiments.small_language import Grammar, tokenizer

from benchmarks import harness

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = [pytest.mark.extras, pytest.mark.slow]


def test_both_ways_choose_the_same_soup(tmp_path: Path) -> None:
    words = tokenizer(Grammar())
    save(new_model(QUICK, len(words), seed=0), words, tmp_path / "base")
    found = harness.main(
        ["--base", str(tmp_path / "base"), "--folder", str(tmp_path / "out"), "--runs", "2",
         "--pairs", "40", "--documents", "20", "--epochs", "1", "--batch-sizes", "8"]
    )  # fmt: skip
    program = found["as a program"]
    inside = found["in process, batches of 8"]
    assert inside["held-out"] == program["held-out"]
    assert program["selected"]
    scored, plain = map(int, inside["examples"].split(" of "))
    assert 0 < scored <= plain
    assert inside["times faster, processor"] > 0
