from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stockpot.errors import CheckpointError
from stockpot.formats import sidefiles
from stockpot.formats.memory import from_state_dict
from stockpot.formats.output import OutputRequest
from stockpot.tensors.spec import DType, TensorSpec


def collect(
    *,
    like: str | None = None,
    config_from: Path | None = None,
    inputs: Sequence[Path] = (),
    dtypes: Sequence[DType] = (),
) -> sidefiles.SideFiles:
    source = None if like is None else from_state_dict({"w": np.zeros(1)}, path=like)
    specs = {dtype.value: TensorSpec(dtype.value, dtype, (1,)) for dtype in dtypes}
    request = OutputRequest(
        path="out",
        specs=specs,
        like=source,
        config_from=config_from,
        inputs=tuple(from_state_dict({"w": np.zeros(1)}, path=str(path)) for path in inputs),
    )
    return sidefiles.collect(request, (".safetensors", ".bin", ".pt", ".pth"))


def model(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name in (
        "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin",
        "trainer_state.json", "README.md", ".gitattributes", "pytorch_model.bin.index.json",
    ):  # fmt: skip
        (folder / name).write_text("x")
    for name, text in {"tokenizer": "{}", "LICENSE": "free", **files}.items():
        (folder / (f"{name}.json" if name.islower() else name)).write_text(text)
    return folder


def test_configuration_and_tokenizer_come_along_and_nothing_of_the_training(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", config='{"model_type": "x"}', generation_config="{}")
    (folder / "original").mkdir()
    side = collect(like=str(folder), dtypes=[DType.F32])
    names = [name for name, _ in side.copies]
    assert names == ["LICENSE", "config.json", "generation_config.json", "tokenizer.json"]
    assert side.rewritten == ()


def test_a_given_donor_goes_before_the_folder_it_is_like(tmp_path: Path) -> None:
    one = model(tmp_path / "a", config="{}")
    two = model(tmp_path / "b", config='{"two": 2}')
    side = collect(like=str(one), config_from=two)
    assert dict(side.copies)["config.json"] == str(two / "config.json")
    with pytest.raises(CheckpointError, match="--config-from"):
        collect(like=None, config_from=tmp_path / "nowhere")


def test_files_that_differ_between_ingredients_are_listed(tmp_path: Path) -> None:
    folders = [
        model(tmp_path / "a", config="{}"),
        model(tmp_path / "b", config="{}", vocab="1"),
        model(tmp_path / "c", config='{"c": 1}', vocab="1"),
    ]
    side = collect(like=str(folders[0]), inputs=folders)
    assert side.differing == ("config.json", "vocab.json")


def test_the_dtype_in_the_configuration_follows_that_of_the_weights(tmp_path: Path) -> None:
    config = {"dtype": "bfloat16", "hidden_size": 8}
    folder = model(tmp_path / "a", config=json.dumps(config))
    side = collect(like=str(folder), dtypes=[DType.F32])
    assert json.loads(dict(side.rewritten)["config.json"]) == {"dtype": "float32", "hidden_size": 8}
    assert "config.json" not in dict(side.copies)
    same = collect(like=str(folder), dtypes=[DType.BF16])
    assert same.rewritten == ()


def test_names_and_size_of_shards_are_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    for i, size in ((1, 500), (2, 300)):
        (folder / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors").write_bytes(bytes(size))
    side = collect(like=str(folder))
    assert (side.stem, side.largest_shard_bytes) == ("diffusion_pytorch_model", 500)
    assert side.copies == ()
