"""The benchmark of the harness, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments.pretraining import QUICK, new_model, save
from experiments.small_language import Grammar, tokenizer

from benchmarks import harness

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = pytest.mark.extras


def test_both_ways_choose_the_same_soup(tmp_path: Path) -> None:
    words = tokenizer(Grammar())
    save(new_model(QUICK, len(words), seed=0), words, tmp_path / "base")
    found = harness.main(
        ["--base", str(tmp_path / "base"), "--folder", str(tmp_path / "out"), "--runs", "2",
         "--pairs", "40", "--documents", "20", "--epochs", "1"]
    )  # fmt: skip
    inside, program = found["held-out"]
    assert inside == pytest.approx(program)
    assert found["selected"]
    assert 0 < found["examples"]["scored"] <= found["examples"]["plain"]
    assert found["ratio"]["processor"] > 0
