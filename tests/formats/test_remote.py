from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tests.formats.hub_server import Hub, hub_server

import stockpot
from stockpot.errors import CheckpointError, OutputExistsError, VerificationError
from stockpot.formats import remote


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback with the model org/name, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("obstore")
    with hub_server() as server:
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(  # before 1.0 it has a copy of its own
            "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
        )
        monkeypatch.setenv("HF_TOKEN", "hf_not_a_secret")
        monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
        files = {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors": save({"w": torch.arange(8.0)}, {"format": "pt"}),
            "pytorch_model.bin": b"other form",
            "onnx/model.onnx": b"other form",
            "tf_model.h5": b"other form",
        }
        tuned = {**files, "model.safetensors": save({"w": torch.arange(8.0) + 1})}
        server.models["org/name"] = {"main": files, "v2": tuned}
        forget_sessions()
        yield server
    forget_sessions()


def test_a_model_of_the_hub_is_read_by_ranges_and_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    opened = stockpot.open("hf:org/name@v2")
    assert opened.path == "hf:org/name@v2"
    assert opened.read("w").tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    asked = "\n".join(hub.requests)
    assert "model.safetensors" in asked
    assert not [name for name in ("pytorch", "onnx", "h5") if name in asked]
    kept = {path.name for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert "config.json" in kept
    assert "model.safetensors" not in kept
    assert hub.tokens == {"Bearer hf_not_a_secret"}
    assert "not_a_secret" not in repr(opened)


def test_an_average_of_hub_models_is_named_and_fetches_nothing_again(
    hub: Hub, tmp_path: Path
) -> None:
    soup = stockpot.average(["hf:org/name", "hf:org/name@v2"])
    soup.save(tmp_path / "soup")
    assert stockpot.open(tmp_path / "soup").read("w").tolist() == [i + 0.5 for i in range(8)]
    assert (tmp_path / "soup" / "config.json").read_bytes() == b"{}"
    record = json.loads((tmp_path / "soup" / "stockpot.json").read_text())
    assert [one["path"] for one in record["ingredients"]] == ["hf:org/name", "hf:org/name@v2"]
    hub.requests.clear()
    with pytest.raises(VerificationError, match="--allow-remote"):
        stockpot.verify(tmp_path / "soup")
    assert hub.requests == []
    assert stockpot.verify(tmp_path / "soup", allow_remote=True) == []


def forget_sessions() -> None:
    """Before 1.0 a session is made for being online or not."""
    import huggingface_hub.utils

    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def test_a_filled_cache_serves_without_the_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants

    with pytest.raises(CheckpointError, match="hf:org/name cannot be fetched"):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        forget_sessions()
        stockpot.open("hf:org/name")
    assert hub.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    forget_sessions()
    huggingface_hub.snapshot_download("org/name")
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    forget_sessions()
    opened = stockpot.open("hf:org/name")
    assert (opened.path, opened.read("w").tolist()) == ("hf:org/name", list(range(8)))
    assert Path(opened.folder, "config.json").is_file()
    assert hub.requests == []


def test_one_file_of_a_model_is_named_after_a_colon(hub: Hub) -> None:
    opened = stockpot.open("hf:org/name@v2:model.safetensors")
    assert opened.read("w")[0] == 1
    with pytest.raises(CheckpointError, match="has no file other"):
        stockpot.open("hf:org/name:other.safetensors")


def test_a_model_that_the_hub_lacks_is_named(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"hf:org/other cannot be fetched: .*404"):
        stockpot.open("hf:org/other")


def test_a_connection_that_fails_is_no_traceback(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"hf:org/name cannot be fetched"):
        stockpot.open("hf:org/name")


_LIBRARY = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""Which the hub's package earns from its HTTP library."""


@_LIBRARY
def test_a_soup_is_pushed_with_its_files_card_and_record_in_one_commit(
    hub: Hub, tmp_path: Path
) -> None:
    soup = stockpot.average(["hf:org/name", "hf:org/name@v2"])
    soup.save(tmp_path / "soup")
    saved = soup.save("hf:org/soup")
    assert saved.path == "hf:org/soup"
    assert hub.private["org/soup"], "what is new is private"
    pushed = hub.models["org/soup"]["main"]
    assert set(pushed) == {path.name for path in (tmp_path / "soup").iterdir()}
    assert pushed["model.safetensors"] == (tmp_path / "soup/model.safetensors").read_bytes()
    assert json.loads(pushed["stockpot.json"])["output"] == saved.fingerprint
    assert [r for r in hub.requests if "/commit/" in r] == ["POST /api/models/org/soup/commit/main"]
    assert stockpot.open("hf:org/soup").read("w")[0] == 0.5


@_LIBRARY
def test_a_push_replaces_nothing_without_force_and_only_what_is_ours_with_it(hub: Hub) -> None:
    soup = stockpot.average(["hf:org/name", "hf:org/name@v2"])
    before = dict(hub.models["org/name"]["v2"])
    with pytest.raises(OutputExistsError):
        soup.save("hf:org/name@v2")
    assert hub.models["org/name"]["v2"] == before
    hub.models["org/name"]["v2"] |= {
        "README.md": b"mine",
        "model-00001-of-00002.safetensors": b"older",
    }
    soup.save("hf:org/name@v2", force=True)
    after = hub.models["org/name"]["v2"]
    assert after["README.md"] == b"mine"
    assert "model-00001-of-00002.safetensors" not in after
    assert after["onnx/model.onnx"] == before["onnx/model.onnx"]
    assert after["model.safetensors"] != before["model.safetensors"]
    soup.save("hf:org/name@new-branch", force=True)
    assert "stockpot.json" in hub.models["org/name"]["new-branch"]
    assert "stockpot.json" not in hub.models["org/name"]["main"]


@_LIBRARY
def test_a_push_replaces_an_older_output_however_it_called_its_weights(
    hub: Hub, tmp_path: Path
) -> None:
    stockpot.average(["hf:org/name", "hf:org/name@v2"]).save("hf:org/soup")
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.mkdir()
        model = hub.models["org/soup"]["main"]["model.safetensors"]
        (path / "weights.safetensors").write_bytes(model)
    stockpot.average(paths).save("hf:org/soup", force=True)
    after = hub.models["org/soup"]["main"]
    assert "model.safetensors" not in after
    assert "weights.safetensors" in after


def test_a_push_without_a_token_is_refused_before_the_work(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soup = stockpot.average(["hf:org/name", "hf:org/name@v2"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="HF_TOKEN"):
        soup.save("hf:org/soup")
    assert "org/soup" not in hub.models


def test_torch_files_are_fetched_where_there_are_no_others() -> None:
    files = ["pytorch_model-00001-of-00002.bin", "training_args.bin", "config.json"]
    assert remote.wanted(files) == ["config.json", "pytorch_model-00001-of-00002.bin"]


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
    assert remote.wanted(files) == wanted
