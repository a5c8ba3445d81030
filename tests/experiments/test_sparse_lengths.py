"""Sparse soups by the length of retraining, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import sparse_lengths


def test_each_length_has_its_rows_and_nothing_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_lengths, "SPARSITIES", (0.9,))
    monkeypatch.setattr(sparse_lengths, "VARIED_AT", 2)
    monkeypatch.setattr(sparse_lengths, "VARIED", ("lr", "retrain-length"))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    arguments = ["--quick", "--out", str(tmp_path), "--lengths", "1", "2", "--jobs", "1"]
    text = sparse_lengths.main(arguments)
    found = json.loads((tmp_path / "sparse_lengths.json").read_text())
    kinds = {(one["epochs"], one["kind"]) for one in found}
    assert kinds == {
        *((epochs, kind) for epochs in (1, 2) for kind in sparse_lengths.KINDS),
        (2, "vary-lr"),
        (2, "vary-retrain-length"),
    }
    soups = {(one["epochs"], one["kind"]): one["scores"]["soup"] for one in found}
    assert soups[1, "imp-long"] != soups[1, "imp-0"], "three times the epochs"
    dense = [(tmp_path / f"epochs-{n}/handwriting/seed-0/dense.safetensors") for n in (1, 2)]
    assert dense[0].read_bytes() == dense[1].read_bytes()
    monkeypatch.setattr(sparse_lengths, "work", None)
    assert sparse_lengths.main(arguments) == text
    assert text.count("\n| 1 | ") == text.count("\n| 2 | ") == 2
    assert "\n| 90 %, lr | " in text


def _one(epochs: int, kind: str, seed: int, soup: float, best: float) -> dict[str, Any]:
    scores = {"soup": soup, "best candidate": best, "mean candidate": best}
    return {
        "epochs": epochs, "sparsity": 0.9, "kind": kind, "seed": seed,
        "scores": {name: {"test": value} for name, value in scores.items()},
    }  # fmt: skip


def test_values_are_by_seed_and_imp_is_a_soup_of_one() -> None:
    found = [_one(3, "uniform", 1, 0.5, 0.25), _one(3, "uniform", 0, 0.75, 0.5),
             _one(3, "imp-long", 0, 0.9, 0), _one(10, "imp-long", 0, 0.1, 0)]  # fmt: skip
    assert sparse_lengths.values(found, 3, 0.9, "soup", "test") == [0.75, 0.5]
    assert sparse_lengths.values(found, 3, 0.9, "best candidate", "test") == [0.5, 0.25]
    assert sparse_lengths.values(found, 3, 0.9, "IMP, 3× the epochs", "test") == [0.9]
