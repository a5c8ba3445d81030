"""Files of flax: written here as its `msgpack_serialize` does, and read without its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import flax
from stockpot.testing import READER_CHECKS, sample_tensors

msgpack = pytest.importorskip("msgpack", reason="the reference writer of these files")
pytestmark = pytest.mark.extras


def packed(tree: Any) -> bytes:
    """As flax.serialization.msgpack_serialize writes a tree of arrays."""

    def extension(value: Any) -> Any:
        shape, name, data = value
        return msgpack.ExtType(1, msgpack.packb((shape, name, data), use_bin_type=True))

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: converted(v) for k, v in value.items()}
        if isinstance(value, torch.Tensor):
            raw = value.contiguous().view(torch.uint8) if value.dim() else value
            data = raw.numpy().tobytes()
            return extension((list(value.shape), str(value.dtype).removeprefix("torch."), data))
        if isinstance(value, np.ndarray):
            return extension((list(value.shape), value.dtype.name, value.tobytes()))
        return value

    found: bytes = msgpack.packb(converted(tree), strict_types=True)
    return found


def unpacked(data: bytes) -> Any:
    """As flax.serialization.msgpack_restore reads it."""

    def extension(code: int, inner: bytes) -> Any:
        assert code == 1
        shape, name, values = msgpack.unpackb(inner, raw=True)
        return np.frombuffer(values, np.dtype(name.decode())).reshape(shape)

    return msgpack.unpackb(data, ext_hook=extension, raw=False)


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any, tmp_path: Path) -> None:
    tensors = {name.replace(".", "-"): value for name, value in sample_tensors().items()}
    tree = {name: value for name, value in tensors.items() if "layer" not in name}
    tree["layers"] = {name: tensors[name] for name in tensors if "layer" in name}
    (tmp_path / "a.msgpack").write_bytes(packed(tree))
    named = {f"layers.{n}" if "layer" in n else n: value for n, value in tensors.items()}
    check(lambda: stockpot.open(tmp_path / "a.msgpack"), named)


def test_arrays_in_chunks_are_one(tmp_path: Path) -> None:
    whole = np.arange(30, dtype=np.float32)
    chunks = {str(i): whole[i * 7 : i * 7 + 7] for i in range(5)}
    tree = {
        "kernel": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 5, "1": 6},
            "chunks": chunks,
        }
    }
    (tmp_path / "a.msgpack").write_bytes(packed(tree))
    checkpoint = stockpot.open(tmp_path / "a.msgpack")
    assert checkpoint["kernel"].shape == (5, 6)
    assert checkpoint.raw("kernel").tobytes() == whole.tobytes()
    for start in range(0, 120, 13):
        part = checkpoint.part("kernel", start, start + 40)
        assert part.tobytes() == whole.tobytes()[start : start + 40]


def test_a_train_state_is_its_parameters_and_the_rest_is_named(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    tree = {
        "step": 3,
        "params": {"dense": {"kernel": ones}},
        "batch_stats": {"mean": ones},
        "opt_state": {"0": {"mu": {"dense": {"kernel": ones}}}},
    }
    (tmp_path / "a.msgpack").write_bytes(packed(tree))
    checkpoint = stockpot.open(tmp_path / "a.msgpack")
    assert list(checkpoint) == ["params.dense.kernel", "batch_stats.mean"]
    assert "opt_state" in checkpoint.notes[0]
    assert list(stockpot.open(tmp_path / "a.msgpack", key="opt_state.0")) == ["mu.dense.kernel"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_soup_comes_out_as_it_came_in(folder: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [{"a": {"b.c": rng.normal(size=(3, 2)).astype("f4")}} for _ in range(3)]
    paths = []
    for i, tree in enumerate(given):
        path = tmp_path / (f"run{i}" if folder else f"{i}.msgpack")
        if folder:
            path.mkdir()
            (path / "config.json").write_text('{"model_type": "bert"}')
        (path / "flax_model.msgpack" if folder else path).write_bytes(packed(tree))
        paths.append(path)
    out = tmp_path / ("soup" if folder else "soup.msgpack")
    stockpot.average(paths).save(out)
    assert stockpot.verify(out) == []
    found = unpacked((out / "flax_model.msgpack" if folder else out).read_bytes())
    mean = np.mean([one["a"]["b.c"].astype("f8") for one in given], axis=0).astype("f4")
    assert np.array_equal(found["a"]["b.c"], mean)
    assert not folder or (out / "config.json").exists()


def sharded(folder: Path, shards: list[dict[str, Any]], *, index: dict[str, str]) -> Path:
    """As transformers cuts a model of flax: trees in files, names with slashes in the index."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for i, tree in enumerate(shards):
        name = f"flax_model-{i + 1:05}-of-{len(shards):05}.msgpack"
        (folder / name).write_bytes(packed(tree))
    listed = {name: f"flax_model-{shard}.msgpack" for name, shard in index.items()}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": listed}))
    return folder


def test_shards_are_read_and_come_out_as_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    where = {"enc/layer.0/w": "00001-of-00002", "dec/w": "00002-of-00002"}
    trees, paths = [], []
    for i in range(3):
        values = [rng.normal(size=(3, 2)).astype("f4") for _ in where]
        trees.append({"enc": {"layer.0": {"w": values[0]}}, "dec": {"w": values[1]}})
        shards = [{name: part} for name, part in trees[i].items()]
        paths.append(sharded(tmp_path / f"run{i}", shards, index=where))
    assert sorted(stockpot.open(paths[0])) == sorted(where)
    stockpot.average(paths).save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    assert not list((tmp_path / "soup").glob("*-of-*"))
    found = unpacked((tmp_path / "soup" / "flax_model.msgpack").read_bytes())
    for take in (lambda tree: tree["enc"]["layer.0"]["w"], lambda tree: tree["dec"]["w"]):
        mean = np.mean([take(tree).astype("f8") for tree in trees], axis=0).astype("f4")
        assert np.array_equal(take(found), mean)


def test_an_index_of_another_number_of_tensors_is_refused(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    shards = [{"a": {"w": ones, "more": ones}}, {"b": {"w": ones}}]
    where = {"a/w": "00001-of-00002", "b/w": "00002-of-00002"}
    with pytest.raises(CheckpointFormatError, match="2 tensors that their shards do not hold"):
        stockpot.open(sharded(tmp_path / "run", shards, index=where))


def test_names_that_lie_within_each_other_have_no_place(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "a.b": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"write \.safetensors"):
        stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.msgpack")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\xa1w",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\x81\xa1w\xc9\xff\xff\xff\xff\x01",
        b"\x82\xa1w\xc0\xa1w\xc0",
        b"\x81\xc0\xc0",
        b"\x81\xa1w\x01",
        packed({"w": np.ones(2, np.float32)}) + b"\x00",
        packed({"w": np.ones(2, np.float32)})[:-1],
        b"\x81\xa1w\xc7\x04\x01\x93\x91\x05\xa0",
        b"\x81\xd9\x01\xff\xc0",
    ],
)
def test_damaged_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.msgpack").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=r"a\.msgpack is no valid file of flax"):
        stockpot.open(tmp_path / "a.msgpack")


def test_every_damaged_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = packed({"a": {"w": np.ones((2, 3), np.float32)}, "b": np.ones(1, np.int8)})
    for at in range(len(whole)):
        for value in (0, 0x7F, 0xC9, 0xDF, 0xFF):
            (tmp_path / "a.msgpack").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                checkpoint = stockpot.open(tmp_path / "a.msgpack")
                for name, spec in checkpoint.items():
                    assert len(checkpoint.raw(name)) == spec.nbytes
            except CheckpointFormatError:
                pass


def test_more_values_than_a_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax, "MAX_VALUES", 1000)
    (tmp_path / "a.msgpack").write_bytes(b"\xdd\x00\x00\x07\xd0" + b"\x01" * 2000)
    with pytest.raises(CheckpointFormatError, match="too many values"):
        stockpot.open(tmp_path / "a.msgpack")


def test_the_longest_names_are_read_again_and_longer_ones_refused(tmp_path: Path) -> None:
    for parts, size in ((61, 1), (1, 1 << 16)):
        for more in (0, 1):
            names = [".".join(["a"] * parts), "b" * size]
            names[parts == 1] += ".a" if parts > 1 and more else "b" * more
            torch.save({name: torch.ones(1) for name in names}, tmp_path / "a.pt")
            soup = stockpot.average([tmp_path / "a.pt"])
            if more:
                with pytest.raises(CheckpointError, match=r"read with 61 parts.*safetensors"):
                    soup.save(tmp_path / "soup.msgpack", force=True)
            else:
                soup.save(tmp_path / "soup.msgpack", force=True)
                assert set(stockpot.open(tmp_path / "soup.msgpack")) == set(names)


def test_a_name_of_very_many_parts_is_refused(tmp_path: Path) -> None:
    torch.save({".".join(["a"] * 1500): torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has 1500 parts"):
        stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.msgpack")
