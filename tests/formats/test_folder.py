"""Model folders: single, sharded, in both formats; and what is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stockpot.formats as cp
from stockpot.errors import CheckpointFormatError
from stockpot.testing import READER_CHECKS, sample_tensors

Tensors = dict[str, torch.Tensor]


def sharded(folder: Path, tensors: Tensors, suffix: str = "safetensors", n: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(tensors)
    weight_map = {}
    for i in range(n):
        file = f"{stem}-{i + 1:05}-of-{n:05}.{suffix}"
        part = {name: tensors[name] for name in names[i::n]}
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 123}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def change_index(folder: Path, **change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(change)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("layout", ["one", "shards", "torch", "torch-shards"])
def test_the_reader_conforms(check: Any, layout: str, tmp_path: Path) -> None:
    if layout == "one":
        save_file(sample_tensors(), tmp_path / "model.safetensors")
    elif layout == "torch":
        torch.save(sample_tensors(), tmp_path / "pytorch_model.bin")
    else:
        sharded(tmp_path, sample_tensors(), "safetensors" if layout == "shards" else "bin")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"not weights")
    check(lambda: cp.open(tmp_path), sample_tensors())


def test_formats_and_metadata_are_said(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a", sample_tensors())
    assert cp.open(folder).format == "safetensors-sharded"
    assert cp.open(folder).metadata == {"total_size": "123"}
    assert len(cp.open(folder).files) == 3
    assert cp.open(sharded(tmp_path / "b", sample_tensors(), "bin")).format == "torch-sharded"


def test_tensors_tied_within_a_shard_stay_tied(tmp_path: Path) -> None:
    shared = torch.randn(3)
    folder = sharded(tmp_path, {"a": shared, "b": torch.ones(1), "c": shared}, "bin", n=2)
    assert cp.open(folder).tied == (("a", "c"),)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path, sample_tensors())
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match="lacks 1 of 3 shards: model-00002-of-00003"):
        cp.open(folder)


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/passwd", "", "a/../../b", 3, "a\0b"]
)
def test_an_index_that_points_outside_of_the_folder_is_refused(file: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", sample_tensors())
    save_file({"scale": torch.ones(1)}, tmp_path / "other.safetensors")
    change_index(folder, scale=file)
    with pytest.raises(CheckpointFormatError, match=r"'scale' in .*same folder"):
        cp.open(folder)


def test_a_shard_that_is_a_link_into_a_store_is_read(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "snapshot", sample_tensors())
    (tmp_path / "blobs").mkdir()
    for file in folder.glob("*.safetensors"):
        target = tmp_path / "blobs" / file.name[6:11]
        file.rename(target)
        file.symlink_to(target)
    assert set(cp.open(folder)) == set(sample_tensors())


def test_an_index_and_shards_that_disagree_are_refused_or_said(tmp_path: Path) -> None:
    folder = sharded(tmp_path, sample_tensors())
    first = "model-00001-of-00003.safetensors"
    change_index(folder, absent=first)
    with pytest.raises(CheckpointFormatError, match="1 tensors that their shards do not hold"):
        cp.open(folder)
    sharded(tmp_path, sample_tensors())
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    del fields["weight_map"]["scale"]
    index.write_text(json.dumps(fields))
    assert "scale" not in cp.open(folder)
    assert "1 tensors in the shards are not in the index" in cp.open(folder).notes[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\xff"]
)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointFormatError, match=r"index\.json"):
        cp.open(tmp_path)


def test_shards_without_an_index_are_what_a_killed_run_leaves_and_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path, sample_tensors())
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointFormatError, match=r"3 shards .*no \*\.index\.json"):
        cp.open(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match="one shard of 3"):
        cp.open(folder)


def test_a_prefix_is_judged_over_all_shards(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "module.b": torch.ones(2), "c": torch.ones(3)}
    assert set(cp.open(sharded(tmp_path / "mixed", mixed))) == set(mixed)
    wrapped = {"module.a": torch.ones(1), "module.b": torch.ones(2), "module.c": torch.ones(3)}
    opened = cp.open(sharded(tmp_path / "wrapped", wrapped))
    assert set(opened) == {"a", "b", "c"}
    assert opened.read("b").tolist() == [1, 1]


def test_one_file_of_any_name_is_taken_and_several_are_not(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    assert list(cp.open(tmp_path)) == ["w"]
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointFormatError, match="2 weights files and no index"):
        cp.open(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointFormatError, match="holds no weights"):
        cp.open(tmp_path)


def test_an_adapter_folder_is_opened(tmp_path: Path) -> None:
    save_file({"q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    assert list(cp.open(tmp_path)) == ["q.lora_A.weight"]


def test_single_and_sharded_have_one_fingerprint(tmp_path: Path) -> None:
    save_file(sample_tensors(), tmp_path / "m.safetensors")
    folder = sharded(tmp_path / "folder", sample_tensors())
    assert cp.open(folder).fingerprint == cp.open(tmp_path / "m.safetensors").fingerprint
