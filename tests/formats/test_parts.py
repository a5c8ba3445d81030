"""Folders of several models: every part is averaged, every other part comes along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot import Ingredients, Mixture


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def pipeline(folder: Path, value: float) -> Path:
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part).mkdir(parents=True)
        save_file({"w": torch.full((2,), value)}, folder / part / f"{file}.safetensors")
        (folder / part / "config.json").write_text("{}")
    for part in ("tokenizer", "scheduler", "checkpoint-500"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    kinds = {p: ["lib", "Class"] for p in ("unet", "text_encoder", "tokenizer", "scheduler")}
    index = {"_class_name": "StableDiffusionPipeline", **kinds, "../outside": ["lib", "Class"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def sentence_transformer(folder: Path, value: float) -> Path:
    for part in ("1_Pooling", "2_Dense"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"part": part}))
    save_file({"w": torch.full((3,), value)}, folder / "model.safetensors")
    save_file({"linear.w": torch.full((2,), value)}, folder / "2_Dense" / "model.safetensors")
    modules = [{"path": "", "type": "T"}, *({"path": p} for p in ("1_Pooling", "2_Dense"))]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text("{}")
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_pipeline_is_averaged_part_by_part(tmp_path: Path) -> None:
    models = [pipeline(tmp_path / f"m{i}", float(i)) for i in (1, 3)]
    opened = stockpot.open(models[0])
    assert sorted(opened) == ["text_encoder/w", "unet/w"]
    Mixture(Ingredients(models)).save(tmp_path / "soup")
    assert files_of(tmp_path / "soup") == [
        "model_index.json", "scheduler/config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        soup = load_file(tmp_path / "soup" / part / f"{file}.safetensors")
        assert {name: value.tolist() for name, value in soup.items()} == {"w": [2.0, 2.0]}
    assert sorted(stockpot.open(tmp_path / "soup")) == sorted(opened)


def test_a_sentence_transformer_keeps_its_modules(tmp_path: Path) -> None:
    models = [sentence_transformer(tmp_path / f"m{i}", float(i)) for i in (1, 3)]
    assert sorted(stockpot.open(models[0])) == ["2_Dense/linear.w", "w"]
    Mixture(Ingredients(models)).save(tmp_path / "soup")
    assert files_of(tmp_path / "soup") == [
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "config.json",
        "model.safetensors", "modules.json",
    ]  # fmt: skip
    assert load_file(tmp_path / "soup" / "2_Dense" / "model.safetensors")["linear.w"][0] == 2.0


def test_shards_of_a_part_have_an_index_of_its_own(tmp_path: Path) -> None:
    models = [pipeline(tmp_path / f"m{i}", float(i)) for i in (1, 3)]
    for model in models:
        tensors = {f"w{i}": torch.ones(2) for i in range(3)}
        save_file(tensors, model / "unet" / "diffusion_pytorch_model.safetensors")
    Mixture(Ingredients(models)).save(tmp_path / "soup", max_shard_bytes=8)
    index = tmp_path / "soup" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    assert weight_map["w0"] == "diffusion_pytorch_model-00001-of-00003.safetensors"
    assert stockpot.open(tmp_path / "soup").fingerprint
    assert len(stockpot.open(tmp_path / "soup")) == 4


def test_parts_that_lie_outside_are_none(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "outside" / "model.safetensors")
    folder = sentence_transformer(tmp_path / "m", 1.0)
    (folder / "link").symlink_to(tmp_path / "outside")
    paths = ["../outside", str(tmp_path / "outside"), "link", "\0", 7, None, "1_Pooling"]
    (folder / "modules.json").write_text(json.dumps([{"path": p} for p in paths] + ["x", []]))
    assert list(stockpot.open(folder)) == ["w"]


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", "7", '{"a": {"b": 1}}'])
def test_a_damaged_list_of_parts_is_no_list(tmp_path: Path, text: str) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    for name in ("modules.json", "model_index.json"):
        (tmp_path / name).write_text(text)
    assert list(stockpot.open(tmp_path)) == ["w"]
