"""The small T5, in a few steps, and how its sentences are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiments import standins

from experiments import small_t5, sst2_minilm

MARKS = list(range(900, 900 + small_t5.N_SENTINELS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.text_folder(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("length", [1, 3, 12, 40])
def test_a_cut_sentence_and_what_was_cut_make_the_whole(length: int) -> None:
    rng = np.random.default_rng(length)
    shares = []
    for _ in range(200):
        ids = list(range(length))
        left, cut = small_t5.cut_out(ids, MARKS, rng)
        assert cut[0] == MARKS[0]
        spans: dict[int, list[int]] = {}
        for token in cut:
            if token in MARKS:
                span = spans.setdefault(token, [])
            else:
                span.append(token)
        assert all(spans.values()), "no span is empty"
        whole = [t for token in left for t in spans.get(token, [token])]
        assert whole == ids
        assert [token for token in left if token in MARKS] == list(spans)
        shares.append(sum(map(len, spans.values())) / length)
    if length == 40:
        assert np.mean(shares) == pytest.approx(small_t5.NOISE, abs=0.04)


def test_nothing_that_chooses_or_reports_was_seen(data: Path) -> None:
    texts = {" ".join(text.split()) for text in small_t5.sentences(data)}
    splits = sst2_minilm.disjoint(sst2_minilm.read_sst2(data), n_train=100)
    for name, part in splits.items():
        words = {" ".join(e.text.split()) for e in part}
        assert bool(words & texts) is (name == "train"), name
    assert "A dog." not in texts, "too short to be cut"
    assert any("slept" in text for text in texts), "of other problems, too"


def test_batches_hold_cut_sentences_and_targets_that_end(data: Path) -> None:
    texts = small_t5.sentences(data)
    words = small_t5.tokenizer(texts, small_t5.QUICK)
    assert words("good").input_ids[-1] == words.eos_token_id
    assert words.unk_token_id not in words("good bad").input_ids
    rows = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
    batch = next(small_t5.batches(words, rows, small_t5.QUICK))
    n = small_t5.QUICK.batch
    assert {name: len(part) for name, part in batch.items()} == {
        "input_ids": n, "attention_mask": n, "labels": n
    }  # fmt: skip
    first_mark = words.convert_tokens_to_ids("<extra_id_0>")
    assert (batch["labels"][:, 0] == first_mark).all()
    assert ((batch["labels"] == words.eos_token_id).sum(1) == 1).all()
    assert ((batch["input_ids"] == first_mark).sum(1) == 1).all()
    assert ((batch["input_ids"] == words.pad_token_id) == (batch["attention_mask"] == 0)).all()


def test_the_small_case_makes_a_table_and_a_second_call_only_reads(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path), "--seeds", "0", "1", "--quick"]
    text = small_t5.main(arguments)
    found = json.loads((tmp_path / "small_t5.json").read_text())
    assert list(found) == ["0", "1"]
    for one in found.values():
        assert set(one["scores"]) == set(small_t5.MODELS)
        assert one["scores"]["greedy"]["held-out"] >= one["scores"]["best single"]["held-out"]
    runs = sorted(path.name for path in (tmp_path / "seed-1" / "runs").glob("run-*"))
    assert runs == ["run-00.json", "run-00.safetensors", "run-01.json", "run-01.safetensors"]
    monkeypatch.delattr(small_t5, "run_sweep")
    monkeypatch.setattr(small_t5, "sentences", None)
    assert small_t5.main(arguments) == text
    assert (tmp_path / "small_t5.md").read_text() == text + "\n"
    assert not list(tmp_path.glob(".base"))


def test_gains_are_above_the_best_single_run_of_each_sweep() -> None:
    def one(best: float, soup: float) -> dict[str, Any]:
        scores = {m: dict.fromkeys(small_t5.COLUMNS, best) for m in small_t5.MODELS}
        return {"scores": {**scores, "uniform": dict.fromkeys(small_t5.COLUMNS, soup)}, "kept": 3}

    found = {"0": one(0.5, 0.75), "1": one(0.75, 0.5)}
    assert small_t5.gains(found, "uniform", "test") == [0.25, -0.25]
    assert "| greedy | +0.00 [+0.00, +0.00] (n) |" in small_t5.markdown(found)
    assert small_t5.markdown(found).endswith("Runs that greedy kept: 3, 3.")
