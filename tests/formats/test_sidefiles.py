from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stockpot.errors import CheckpointError
from stockpot.formats import sidefiles
from stockpot.formats.memory import from_state_dict
from stockpot.formats.output import OutputRequest
from stockpot.tensors.spec import DType


def collect(
    *,
    like: str | None = None,
    config_from: Path | None = None,
    inputs: Sequence[Path] = (),
    dtypes: Sequence[DType] = (),
) -> sidefiles.SideFiles:
    source = None if like is None else from_state_dict({"w": np.zeros(1)}, path=like)
    request = OutputRequest(
        path="out",
        specs={},
        like=source,
        config_from=config_from,
        inputs=tuple(from_state_dict({"w": np.zeros(1)}, path=str(path)) for path in inputs),
    )
    suffixes = (".safetensors", ".bin", ".pt", ".pth")
    return sidefiles.collect(request, suffixes, dtypes=frozenset(dtypes))


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_links_out_of_the_folder_are_not_followed_and_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    folder = model(tmp_path / "a", config="{}")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    (folder / "environ.txt").symlink_to("/proc/self/environ")
    (folder / "merges.txt").symlink_to("tokenizer.json")
    os.mkfifo(folder / "pipe.txt")
    side = collect(like=str(folder), inputs=[folder, folder])
    names = [name for name, _ in side.copies]
    assert names == ["LICENSE", "config.json", "merges.txt", "tokenizer.json"]
    assert side.links == ("environ.txt", "vocab.txt")


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "other.json").symlink_to("../../other")
    (tmp_path / "m" / "other").write_text("{}")
    side = collect(like=str(snapshot))
    assert [name for name, _ in side.copies] == ["config.json"]
    assert side.links == ("other.json",)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": 1', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_configuration_that_is_no_json_is_copied_as_it_is(tmp_path: Path, content: Any) -> None:
    folder = model(tmp_path / "a")
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "config.json").write_bytes(data)
    side = collect(like=str(folder), dtypes=[DType.F32])
    assert "config.json" in dict(side.copies)


def test_a_configuration_of_many_small_values_is_not_parsed(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    (folder / "config.json").write_text(
        '{"torch_dtype": "float16", "a": [' + "{}," * 500_000 + "{}]}"
    )
    (folder / "modules.json").write_text("[" + "{}," * 500_000 + "{}]")
    side = collect(like=str(folder), dtypes=[DType.F32])
    assert "config.json" in dict(side.copies)
    assert sidefiles.parts_of(folder) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_configuration_is_read_in_every_encoding_of_json(encoding: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    (folder / "config.json").write_bytes('{"torch_dtype": "float16", "n": "ü"}'.encode(encoding))
    side = collect(like=str(folder), dtypes=[DType.F32])
    assert json.loads(dict(side.rewritten)["config.json"]) == {"torch_dtype": "float32", "n": "ü"}
