"""The experiment on a simulated pre-training run, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments.small_language import Grammar, tokenizer

from experiments import pretraining


def test_verbs_of_the_language_agree_across_what_misleads() -> None:
    language = Grammar()
    words = set(language.vocabulary)
    for text in language.documents(20, seed=5):
        assert set(text.split()) <= words
    for row in language.pairs(50, seed=5):
        words_after = row["text"].rpartition(" . ")[2].split()
        subject = next(word for word in words_after if word.rstrip("s").endswith("n"))
        plural = subject.endswith("s")
        assert plural != words_after[-1].endswith("s")
        assert all(verb.endswith("s") != plural for verb in row["choices"])
        noun = language.nouns.index(subject.rstrip("s"))
        right, wrong = (
            language.prefers[noun][language.verbs.index(verb.rstrip("s"))]
            for verb in (row["choices"][row["label"]], row["choices"][1 - row["label"]])
        )
        assert right > wrong
    assert language.documents(3, seed=1) == Grammar().documents(3, seed=1)
    assert language.documents(3, seed=1) != language.documents(3, seed=2)
    assert tokenizer(language)("the .")["input_ids"] == [1, 5]


def test_the_program_and_the_task_choose_alike_and_a_second_call_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), "--seeds", "3", "--quick"]
    text = pretraining.main(arguments)
    found = json.loads((tmp_path / "pretraining.json").read_text())["3"]
    folders = sorted(p.name for p in (tmp_path / "seed-3" / "run").iterdir())
    assert folders == [f"step-{4 * i:05d}" for i in range(1, 6)]
    full, small = found[pretraining.FULL], found[pretraining.BUDGET]
    assert small["scored"] <= 6 < full["scored"] == full["grid"]
    assert full["held-out"] <= min(small["held-out"], found[pretraining.LAST]["held-out"])
    # NumPy alone computes the loss that the task has.
    program = found[pretraining.BY_PROGRAM]
    assert {k: program[k] for k in ("window", "scored")} == {
        k: small[k] for k in ("window", "scored")
    }
    assert found[pretraining.DECAYED]["test"] != found[pretraining.LAST]["test"]
    for name in found:
        assert f"| {name} |" in text
    monkeypatch.setattr(pretraining, "search", None)
    assert pretraining.main(arguments) == text
