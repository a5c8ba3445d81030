"""Compressing and expanding: small on disk, the same values, and refusals that say why."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.pruning import pruned, sparse_model

import stockpot.formats as cp
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.formats.compressing import compress, expand


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_expanding_gives_the_file_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    dense = save(sparse_model(dtype=dtype), tmp_path / "m.safetensors")
    compress(dense, tmp_path / "c.safetensors")
    expand(tmp_path / "c.safetensors", tmp_path / "e.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes() == dense.read_bytes()


def test_a_file_of_90_percent_zeros_takes_a_quarter_at_most(tmp_path: Path) -> None:
    dense = save(sparse_model(), tmp_path / "m.safetensors")
    stored = compress(dense, tmp_path / "c.safetensors")
    assert stored.sparsity == pytest.approx(0.9, abs=1e-3)
    assert stored.bytes == (tmp_path / "c.safetensors").stat().st_size
    assert stored.bytes <= 0.25 * dense.stat().st_size


def test_the_size_falls_with_sparsity(tmp_path: Path) -> None:
    sizes = []
    for sparsity in (0.5, 0.8, 0.9, 0.98):
        weights = {"fc.weight": pruned(200, 300, sparsity=sparsity)}
        source = save(weights, tmp_path / "m.safetensors")
        sizes.append(compress(source, tmp_path / "c.safetensors", force=True).bytes)
    # A bit for each weight, four bytes for each that is kept, eight for each row, and the header.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 60_000 * (1 / 8 + 0.02 * 4) + 200 * 8 + 1000


def test_minus_zero_becomes_zero_and_nan_survives(tmp_path: Path) -> None:
    weight = pruned(20, 50)
    weight[0, :3] = torch.tensor([-0.0, float("nan"), float("-inf")])
    compress(save({"fc.weight": weight}, tmp_path / "m.safetensors"), tmp_path / "c.safetensors")
    found = cp.open(tmp_path / "c.safetensors").read("fc.weight")
    assert not torch.signbit(found[0, 0])
    assert found[0, 1].isnan()
    weight[0, 0] = 0.0
    assert torch.equal(found.view(torch.int32), weight.view(torch.int32))


def test_what_does_not_get_smaller_or_has_no_place_stays_dense(tmp_path: Path) -> None:
    tensors = {
        **sparse_model(),
        "in_proj_weight": pruned(64, 64),  # the layout holds names in .weight only
        "half.weight": pruned(64, 64, sparsity=0.03),
    }
    stored = compress(save(tensors, tmp_path / "m.safetensors"), tmp_path / "c.safetensors")
    assert stored.left_dense == ("in_proj_weight",)
    assert stored.n_sparse == 2
    found = load_file(tmp_path / "c.safetensors")
    assert found["scale.weight"].shape == ()
    assert {"in_proj_weight", "half.weight", "norm.weight"} <= set(found)


def test_long_tensors_are_written_in_pieces(tmp_path: Path) -> None:
    # More than a million elements in one index of the first dimension, and in rows.
    tensors = {"a.weight": pruned(2, 3, 700, 500), "b.weight": pruned(1500, 1001)}
    dense = save(tensors, tmp_path / "m.safetensors")
    compress(dense, tmp_path / "c.safetensors")
    for name, weight in tensors.items():
        stored = load_file(tmp_path / "c.safetensors")
        counts = (weight != 0).reshape(len(weight), -1).sum(1)
        offsets = stored[name.replace("weight", "row_offsets")]
        assert torch.equal(offsets, counts.cumsum(0) - counts)
    expand(tmp_path / "c.safetensors", tmp_path / "e.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes() == dense.read_bytes()


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    weights = {f"{i}.weight": pruned(1000, 1000, seed=i) for i in range(12)}
    source = save(weights, tmp_path / "m.safetensors")
    del weights
    compress(source, tmp_path / "c.safetensors")  # imports are no part of it
    tracemalloc.start()
    try:
        compress(source, tmp_path / "c.safetensors", force=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000  # of 48 MB


def test_folders_keep_their_side_files_and_shards(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    folder.mkdir()
    save(sparse_model(), folder / "model.safetensors")
    config = {"dtype": "float32", "quantization_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("a b")
    compress(folder, tmp_path / "small", max_shard_bytes=3000)
    assert (tmp_path / "small" / "vocab.txt").read_text() == "a b"
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    told = json.loads((tmp_path / "small" / "config.json").read_text())
    assert told["quantization_config"]["sparsity_config"]["format"] == "sparse-bitmask"
    expand(tmp_path / "small", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back/config.json").read_text())
    assert cp.open(tmp_path / "back").fingerprint == cp.open(folder).fingerprint


def test_a_torch_file_can_be_compressed_and_expanded_to(tmp_path: Path) -> None:
    tensors = sparse_model()
    torch.save({"epoch": 3, "model": tensors, "ema": tensors}, tmp_path / "m.pt")
    compress(tmp_path / "m.pt", tmp_path / "c.safetensors", key="model")
    expand(tmp_path / "c.safetensors", tmp_path / "e.pt")
    found = torch.load(tmp_path / "e.pt", weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_refusals_say_what_was_expected(tmp_path: Path) -> None:
    dense = save(
        {"fc.weight": torch.ones(9, 9), "in_proj": pruned(9, 9)}, tmp_path / "d.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"45\.1 % .* \(those in in_proj do not count"):
        compress(dense, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="dense already"):
        expand(dense, tmp_path / "c.safetensors")
    sparse = save(sparse_model(), tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="belongs to safetensors"):
        compress(sparse, tmp_path / "c.pt")
    compress(sparse, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="stored sparse already"):
        compress(tmp_path / "c.safetensors", tmp_path / "cc.safetensors")
    with pytest.raises(OutputExistsError):
        compress(sparse, tmp_path / "c.safetensors")
    with pytest.raises(OutputExistsError, match="is the ingredient"):
        compress(sparse, sparse, force=True)


def test_names_that_would_be_taken_for_parts_are_refused(tmp_path: Path) -> None:
    tensors = {**sparse_model(), "fc.shape": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"fc\.shape would be taken for a part"):
        compress(save(tensors, tmp_path / "m.safetensors"), tmp_path / "c.safetensors")


def test_the_record_of_a_soup_goes_with_it(tmp_path: Path) -> None:
    from stockpot.recipes import Uniform
    from stockpot.recipes.record import verify

    runs = [save(sparse_model(), tmp_path / f"{i}.safetensors") for i in range(2)]
    Uniform().cook(runs).save(tmp_path / "soup.safetensors")
    compress(tmp_path / "soup.safetensors", tmp_path / "small.safetensors")
    assert verify(tmp_path / "small.safetensors") == []
    expand(tmp_path / "small.safetensors", tmp_path / "back.safetensors")
    assert verify(tmp_path / "back.safetensors") == []
