"""The sparse-bitmask layout: compressed-tensors reads what we write, and we what it writes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.pruning import pruned, sparse_model

import stockpot.formats as cp
from stockpot.errors import CheckpointFormatError
from stockpot.formats.compressing import compress
from stockpot.formats.encodings import PARTS, CompressedCheckpoint, Rows
from stockpot.testing import READER_CHECKS

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def peer() -> Any:
    """The compressor of compressed-tensors; the layout is gone from its version 0.15."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles functions on import, with deprecated means
        compressors = pytest.importorskip(
            "compressed_tensors.compressors", reason="compressed-tensors < 0.15 is not installed"
        )
        return compressors.BaseCompressor.load_from_registry("sparse-bitmask", config=None)


def files(tensors: Tensors, folder: Path, name: str = "m") -> Path:
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def parts(weight: torch.Tensor, name: str = "fc") -> Tensors:
    """The four tensors, written down here independently of the code."""
    kept = weight.numpy() != 0
    counts = kept.sum(axis=tuple(range(1, weight.ndim)))
    bits = np.packbits(kept, axis=-1, bitorder="little")
    return {
        f"{name}.shape": torch.tensor(weight.shape),
        f"{name}.compressed": weight[torch.from_numpy(kept)],
        f"{name}.bitmask": torch.from_numpy(bits),
        f"{name}.row_offsets": torch.from_numpy(np.cumsum(counts) - counts),
    }


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reader_conforms(check: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = sparse_model(dtype=dtype)
    compress(files(expected, tmp_path), tmp_path / "c.safetensors")
    check(lambda: cp.open(tmp_path / "c.safetensors"), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_peer_reads_what_we_write(peer: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = {**sparse_model(dtype=dtype), "list.weight": pruned(5000).to(dtype)}
    compress(files(expected, tmp_path), tmp_path / "c.safetensors")
    found = dict(peer.decompress(str(tmp_path / "c.safetensors")))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_matrices_are_stored_byte_for_byte_as_by_the_peer(peer: Any, tmp_path: Path) -> None:
    expected = {"a.weight": pruned(33, 257), "b.weight": pruned(4000)}
    compress(files(expected, tmp_path), tmp_path / "c.safetensors")
    ours, theirs = load_file(tmp_path / "c.safetensors"), peer.compress(expected)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def test_we_read_what_the_peer_writes(peer: Any, tmp_path: Path) -> None:
    expected = {n: t for n, t in sparse_model().items() if t.ndim}
    found = cp.open(files(peer.compress(expected), tmp_path))
    assert isinstance(found, CompressedCheckpoint)
    assert {name: found.read(name).tolist() for name in found} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_a_folder_says_in_its_config_what_the_peer_looks_for(peer: Any, tmp_path: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor

    (tmp_path / "dense").mkdir()
    save_file(sparse_model(), tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text('{"hidden": 8}')
    compress(tmp_path / "dense", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    found = ModelCompressor.from_compression_config(config["quantization_config"])
    assert found.sparsity_config.format == "sparse-bitmask"
    assert found.sparsity_config.targets == ["conv", "fc"]
    assert found.sparsity_config.ignore == ["norm"]


def test_the_four_tensors_may_lie_in_different_shards(tmp_path: Path) -> None:
    stored = {**parts(pruned(6, 40)), "bias": torch.ones(6)}
    weight_map = {name: f"model-{i + 1:05}-of-00005.safetensors" for i, name in enumerate(stored)}
    for name, file in weight_map.items():
        save_file({name: stored[name]}, tmp_path / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = cp.open(tmp_path)
    assert found.format == "safetensors-sharded+bitmask"
    assert list(found) == ["bias", "fc.weight"]
    assert torch.equal(found.read("fc.weight"), pruned(6, 40))


def test_offsets_are_not_trusted_and_empty_tensors_are_read(tmp_path: Path) -> None:
    stored = parts(pruned(6, 40)) | {"fc.row_offsets": torch.full((6,), 99)}
    stored |= parts(torch.zeros(3, 0), "none") | parts(torch.zeros(0, 9), "nothing")
    found = cp.open(files(stored, tmp_path))
    assert torch.equal(found.read("fc.weight"), pruned(6, 40))
    assert found.read("none.weight").shape == (3, 0)
    assert found.read("nothing.weight").shape == (0, 9)


def test_names_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    plain = {"a.bitmask": torch.ones(3, dtype=torch.uint8), "a.shape": torch.tensor([1, 2])}
    found = cp.open(files(plain, tmp_path))
    assert not isinstance(found, CompressedCheckpoint)
    assert set(found) == set(plain)


DAMAGED: dict[str, tuple[Tensors, str]] = {
    "no offsets": ({"fc.row_offsets": torch.empty(0)}, "row_offsets is missing"),
    "another shape": ({"fc.shape": torch.tensor([6, 999])}, "does not fit its bits"),
    "a negative size": ({"fc.shape": torch.tensor([-6, -40])}, "does not fit its bits"),
    "a huge shape": ({"fc.shape": torch.tensor([2**62, 2**62])}, "does not fit its bits"),
    "no integer shape": ({"fc.shape": torch.tensor([6.0, 40.0])}, "its shape is F32"),
    "no shape": ({"fc.shape": torch.empty(0, dtype=torch.int64)}, "its shape is I64"),
    "too many values": ({"fc.compressed": torch.ones(241)}, r"F32 values \(241,\)"),
    "values in rows": ({"fc.compressed": torch.ones(4, 6)}, r"F32 values \(4, 6\)"),
    "both forms": ({"fc.weight": torch.ones(6, 40)}, "fc.weight is there as well"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_parts_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    stored = {**parts(pruned(6, 40)), **change}
    if case == "no offsets":
        del stored["fc.row_offsets"]
    with pytest.raises(CheckpointFormatError, match=message):
        cp.open(files(stored, tmp_path))


@pytest.mark.parametrize("n", [23, 25])
def test_more_or_fewer_values_than_bits_are_refused_when_read(n: int, tmp_path: Path) -> None:
    stored = {**parts(pruned(6, 40)), "fc.compressed": torch.ones(n)}
    found = cp.open(files(stored, tmp_path))
    with pytest.raises(CheckpointFormatError, match=rf"marks 24 values .* holds {n}"):
        found.raw("fc.weight")


def test_the_four_names_are_the_layout_s() -> None:
    assert PARTS == ("shape", "compressed", "bitmask", "row_offsets")


@pytest.mark.parametrize("sizes", [(2**62, 2, 0), (2**62, 2**62, 0)])
def test_rows_beyond_every_count_are_refused(sizes: tuple[int, ...], tmp_path: Path) -> None:
    assert Rows.of(sizes).n == sizes[0] * sizes[1]
    described = {
        "p.shape": ("I64", [3]), "p.compressed": ("F32", [0]), "p.bitmask": ("U8", list(sizes)),
        "p.row_offsets": ("I64", [0]),
    }  # fmt: skip
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 24] if n == 0 else [24, 24]}
        for n, (name, (dtype, shape)) in enumerate(described.items())
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + np.array(sizes, np.int64).tobytes()
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="more than 9223372036854775807 rows"):
        cp.open(tmp_path / "m.safetensors")


def test_rows_without_elements_are_empty(tmp_path: Path) -> None:
    found = cp.open(files(parts(torch.zeros(3, 2, 0)), tmp_path))
    assert found["fc.weight"].shape == (3, 2, 0)
    assert found.raw("fc.weight").size == 0
