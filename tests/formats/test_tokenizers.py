"""Which token each row stands for: real tokenizers are read, others cost little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stockpot.formats import tokenizers
from stockpot.formats.tokenizers import tokens_of

ADDED = [{"id": 3, "content": "<end>"}]


def written(folder: Path, name: str, content: object, **options: Any) -> None:
    (folder / name).write_text(json.dumps(content, ensure_ascii=False, **options))


@pytest.mark.parametrize(
    "vocab", [{"a": 0, "b": 1, "ü": 2}, [["a", -1.5], ["b", -2.5], ["ü", -3.0]]]
)
def test_tokens_are_those_of_the_model_and_the_added_ones(vocab: Any, tmp_path: Path) -> None:
    written(tmp_path, "tokenizer.json", {"model": {"vocab": vocab}, "added_tokens": ADDED})
    assert tokens_of(tmp_path) == {0: "a", 1: "b", 2: "ü", 3: "<end>"}


def test_many_small_values_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_SHORT_TEXTS", 0)
    empty = "{}," * 500_000 + "{}"
    (tmp_path / "tokenizer.json").write_text(
        f'{{"model": {{"vocab": {{"a": 0}}, "x": [{empty}]}}}}'
    )
    assert tokens_of(tmp_path) is None
    written(tmp_path, "vocab.json", {"b": 0})
    assert tokens_of(tmp_path) == {0: "b"}


def test_no_allowance_lets_a_file_of_nothing_but_empty_values_pass(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model":[' + "{}," * 8_000_000 + "{}]}")
    assert tokens_of(tmp_path) is None


@pytest.mark.parametrize("options", [{"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("paired", [True, False])
def test_the_largest_tokenizers_in_use_are_read(
    options: dict[str, Any], paired: bool, tmp_path: Path
) -> None:
    n, n_merges = 262_144, 515_000  # Gemma's
    merges = [[f"\u2581{i % 1000}", f"{i % 777}"] for i in range(n_merges)]
    content = {
        "added_tokens": ADDED,
        "model": {
            "vocab": {f"t{i}": i for i in range(n)},
            "merges": merges if paired else [" ".join(pair) for pair in merges],
        },
    }
    written(tmp_path, "tokenizer.json", content, **options)
    found = tokens_of(tmp_path)
    assert found is not None
    assert (len(found), found[n - 1]) == (n, f"t{n - 1}")
