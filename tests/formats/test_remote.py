from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stockpot
from stockpot.errors import CheckpointError
from stockpot.formats import remote


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A hub of one model, without the network; what was asked of it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    asked: list[dict[str, object]] = []

    def files(repository: str, revision: str | None) -> list[str]:
        if repository != "org/name":
            raise OSError("404: no such repository")
        names = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
        return [*names, "tf_model.h5", "tokenizer.json"]

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append({"revision": revision, "files": allow_patterns})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_remote_name_is_fetched_and_opened(hub: list[dict[str, object]]) -> None:
    assert set(stockpot.open("hf:org/name@v2")) == {"w"}
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    assert hub == [{"revision": "v2", "files": wanted}], "one format, and nothing of subfolders"


def test_a_model_that_the_hub_lacks_is_named(hub: list[dict[str, object]]) -> None:
    with pytest.raises(CheckpointError, match=r"hf:org/other cannot be fetched: 404"):
        stockpot.open("hf:org/other")


def test_a_connection_that_fails_is_no_traceback(
    hub: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(repository: str, revision: str | None) -> list[str]:
        raise RuntimeError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.list_repo_files", fails)
    with pytest.raises(CheckpointError, match=r"hf:org/name cannot be fetched: .*not known"):
        stockpot.open("hf:org/name")


def test_torch_files_are_fetched_where_there_are_no_others() -> None:
    files = ["pytorch_model-00001-of-00002.bin", "training_args.bin", "config.json"]
    assert remote._wanted(files) == ["config.json", "pytorch_model-00001-of-00002.bin"]


def test_a_missing_path_that_looks_like_a_name_of_the_hub_says_how_to_write_one() -> None:
    with pytest.raises(CheckpointError, match=r"hub is written hf:org/no-such-model"):
        stockpot.open("org/no-such-model")
    with pytest.raises(CheckpointError) as caught:
        stockpot.open("/no/such/file.pt")
    assert "hf:" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            ["config.json", "flax_model.msgpack", "tf_model.h5"],
            ["config.json", "flax_model.msgpack"],
        ),
        (
            ["modules.json", "model.safetensors", "1_Pooling/config.json", "onnx/model.onnx"],
            ["1_Pooling/config.json", "model.safetensors", "modules.json"],
        ),
        (
            ["model_index.json", "unet/diffusion_pytorch_model.bin", "unet/flax_model.msgpack"],
            ["model_index.json", "unet/diffusion_pytorch_model.bin"],
        ),
        (["a/model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
    ],
)
def test_parts_that_a_model_lists_are_fetched_with_it(files: list[str], wanted: list[str]) -> None:
    assert remote._wanted(files) == wanted
