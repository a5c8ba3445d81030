from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from tests.tasks.transformers import tiny

import stockpot
from stockpot.tasks.transformers import names


def test_a_model_with_new_names_in_memory_is_filled_from_its_own_file(tmp_path: Path) -> None:
    folder = tiny.vit_folder(tmp_path / "vit", labels=("a", "b"))
    stored = stockpot.open(folder)
    saved = transformers.AutoModelForImageClassification.from_pretrained(folder)
    plain = transformers.AutoModelForImageClassification.from_config(saved.config)
    renames = importlib.util.find_spec("transformers.core_model_loading") is not None
    assert (set(plain.state_dict()) != set(stored)) == renames  # transformers 4 renames nothing
    model = names.with_file_names(plain)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()} == set(stored)
    stored.load_into(model)
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels).logits, saved.eval()(pixels).logits)


def test_state_dicts_go_in_as_they_come_out() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    one = names.with_file_names(transformers.ViTForImageClassification(config))
    two = names.with_file_names(transformers.ViTForImageClassification(config))
    two.load_state_dict(one.state_dict())
    for (name, a), (other, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_a_model_with_the_same_names_is_left_alone() -> None:
    model = transformers.BertForSequenceClassification(tiny.bert_config())
    assert type(names.with_file_names(model)) is transformers.BertForSequenceClassification


def test_a_model_that_merges_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def merged(model: object, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first, _, *rest = state
        return {"both": torch.stack([state[first], state[first]]), **{n: state[n] for n in rest}}

    loading = pytest.importorskip("transformers.core_model_loading", reason="transformers 4")
    monkeypatch.setattr(loading, "revert_weight_conversion", merged)
    model = transformers.BertForSequenceClassification(tiny.bert_config())
    with pytest.raises(stockpot.TaskError, match="merges or splits"):
        names.with_file_names(model)
