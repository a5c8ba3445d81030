"""Folders of distributed training: chunks put together, and what is damaged or not read said."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import distributed
from stockpot.formats.distributed import _Chunk, _DamagedError, _is_covered
from stockpot.testing import READER_CHECKS, sample_tensors

Blocks = dict[str, list[tuple[tuple[int, ...], torch.Tensor]]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def saved(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    blocks: Blocks,
    *,
    paths: dict[str, tuple[str, ...]] | None = None,
    change: Callable[[dict[Any, Any]], None] = lambda storage: None,
) -> Path:
    """A folder as DCP writes it: chunks in turn in two files, described by torch's own classes."""
    folder.mkdir()
    files = [io.BytesIO(), io.BytesIO()]
    state, storage = {}, {}
    for name, tensor in tensors.items():
        parts = blocks.get(name, [((0,) * tensor.dim(), tensor)])
        chunks = []
        for i, (begin, part) in enumerate(parts):
            file, at = files[i % 2], files[i % 2].tell()
            torch.save(part.clone(), file)
            chunks.append(dcp.ChunkStorageMetadata(torch.Size(begin), part.size()))
            place = _StorageInfo(f"__{i % 2}_0.distcp", at, file.tell() - at)
            storage[dcp.MetadataIndex(name, torch.Size(begin), i)] = place
        properties = dcp.TensorProperties(dtype=tensor.dtype)
        state[name] = dcp.TensorStorageMetadata(properties, tensor.size(), chunks)
    state["epoch"] = dcp.BytesStorageMetadata()
    change(storage)
    whole = dcp.Metadata(state, paths, storage)
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    for i, file in enumerate(files):
        (folder / f"__{i}_0.distcp").write_bytes(file.getvalue())
    return folder


def rows(tensor: torch.Tensor, *cuts: int) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    edges = [0, *cuts, len(tensor)]
    rest = (0,) * (tensor.dim() - 1)
    return [((a, *rest), tensor[a:b]) for a, b in pairwise(edges)]


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any, tmp_path: Path) -> None:
    tensors = sample_tensors()
    big = tensors["layer.1.weight"]
    grid = [((r, c), big[r : r + 150, c : c + 600]) for r in (0, 150) for c in (0, 600)]
    blocks: Blocks = {
        "layer.1.weight": grid,
        "layer.0.weight": rows(tensors["layer.0.weight"], 2, 5),
        "bytes": rows(tensors["bytes"], 3, 7),
    }
    folder = saved(tmp_path / "run", tensors, blocks)
    check(lambda: stockpot.open(folder), tensors)


@pytest.mark.parametrize("cut", [(slice(0, 30), slice(None)), (slice(None), slice(0, 40))])
def test_any_piece_is_that_of_the_whole(tmp_path: Path, cut: Any) -> None:
    tensor = torch.randn(60, 70)
    first = tensor[cut]
    second = tensor[30:] if first.shape[0] == 30 else tensor[:, 40:]
    begin = (30, 0) if first.shape[0] == 30 else (0, 40)
    folder = saved(tmp_path / "run", {"w": tensor}, {"w": [((0, 0), first), (begin, second)]})
    checkpoint = stockpot.open(folder)
    whole = checkpoint.raw("w").tobytes()
    assert whole == tensor.numpy().tobytes()
    for start in range(0, len(whole), 1000):
        for stop in (start + 4, start + 555, len(whole)):
            assert checkpoint.part("w", start, stop).tobytes() == whole[start:stop]


def test_the_section_of_the_model_is_found_by_the_paths(tmp_path: Path) -> None:
    tensors = {"model.w": torch.ones(2), "optimizer.state.0.m": torch.zeros(2)}
    paths = {"model.w": ("model", "w"), "optimizer.state.0.m": ("optimizer", "state", "0", "m")}
    folder = saved(tmp_path / "run", tensors, {}, paths=paths)
    checkpoint = stockpot.open(folder)
    assert list(checkpoint) == ["w"]
    assert checkpoint.section == "model"


def test_folders_are_averaged_with_files_of_the_same_model(tmp_path: Path) -> None:
    one, other = torch.randn(5, 3), torch.randn(5, 3)
    folder = saved(tmp_path / "step", {"w": one}, {"w": rows(one, 2)})
    torch.save({"w": other}, tmp_path / "b.pt")
    soup = stockpot.Mixture(stockpot.Ingredients([folder, tmp_path / "b.pt"]))
    soup.save(tmp_path / "soup.safetensors")
    made = stockpot.open(tmp_path / "soup.safetensors").read("w")
    assert torch.equal(made, ((one.double() + other.double()) / 2).float())


@pytest.mark.parametrize("inner", ["pytorch_model_fsdp_0", "weights"])
def test_the_model_of_a_trainers_checkpoint_is_found_in_it(inner: str, tmp_path: Path) -> None:
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        saved(folder / inner, {"model.w": torch.full((2,), float(step))}, {})
        saved(folder / "optimizer_0", {"m": torch.zeros(2)}, {})
        (folder / "trainer_state.json").write_text("{}")
    paths = stockpot.expand_paths([tmp_path])
    assert [Path(path).name for path in paths] == ["checkpoint-5", "checkpoint-10"]
    stockpot.average(paths).save(tmp_path / "soup.safetensors")
    assert stockpot.open(tmp_path / "soup.safetensors").read("model.w").tolist() == [7.5, 7.5]


def _outside(storage: dict[Any, Any]) -> None:
    for key, info in storage.items():
        storage[key] = _StorageInfo("../secret", info.offset, info.length)


def _absent(storage: dict[Any, Any]) -> None:
    storage.pop(next(iter(storage)))


def _elsewhere(storage: dict[Any, Any]) -> None:
    for key, info in storage.items():
        storage[key] = _StorageInfo(info.relative_path, info.offset + 10**9, info.length)


@pytest.mark.parametrize(
    ("change", "said"),
    [(_outside, "outside of it"), (_absent, "do not fill"), (_elsewhere, "cut off")],
)
def test_chunks_that_are_not_where_they_should_be(
    tmp_path: Path, change: Callable[[dict[Any, Any]], None], said: str
) -> None:
    tensor = torch.randn(4, 2)
    folder = saved(tmp_path / "run", {"w": tensor}, {"w": rows(tensor, 2)}, change=change)
    with pytest.raises(CheckpointFormatError, match=said):
        stockpot.open(folder).raw("w")


def test_chunks_that_lie_on_each_other_or_differ_from_their_description(tmp_path: Path) -> None:
    tensor = torch.randn(4, 2)
    twice: Blocks = {"w": [((0, 0), tensor[:2]), ((1, 0), tensor[:2])]}
    with pytest.raises(CheckpointFormatError, match="do not fill"):
        stockpot.open(saved(tmp_path / "a", {"w": tensor}, twice))
    wrong: Blocks = {"w": rows(tensor.to(torch.float64), 2)}
    with pytest.raises(CheckpointFormatError, match="no F32 tensor"):
        stockpot.open(saved(tmp_path / "b", {"w": tensor}, wrong)).raw("w")


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    tensor = torch.randn(4, 2)
    folder = saved(tmp_path / "run", {"w": tensor}, {"w": rows(tensor, 2)})
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointFormatError, match=r"lacks 1 of 2 files: __1_0\.distcp"):
        stockpot.open(folder)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_description_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    tensor = torch.randn(4, 2)
    folder = saved(tmp_path / "run", {"w": tensor}, {"w": rows(tensor, 2)})
    data = bytearray((folder / ".metadata").read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(1 + seed % 4):
        at = int(torch.randint(len(data), (), generator=generator))
        data[at] = int(torch.randint(256, (), generator=generator))
    (folder / ".metadata").write_bytes(data)
    try:
        opened = stockpot.open(folder)
        for name in opened:
            opened.raw(name)
    except CheckpointError:
        pass


@pytest.mark.parametrize(
    "names",
    [
        ["consolidated.00.pth", "consolidated.01.pth"],
        ["model_final.rank_0.pth", "model_final.rank_1.pth"],
        ["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"],
        ["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
        ["mp_rank_00_000/model_optim_rng.pt", "mp_rank_00_001/model_optim_rng.pt"],
        ["model_tp0_pp0.pt", "model_tp1_pp0.pt"],
        ["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"],
    ],
)
def test_ranks_of_one_model_are_no_ingredients(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "run"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.ones(2)}, folder / name)
    with pytest.raises(CheckpointFormatError, match="parts of one model"):
        stockpot.open(folder)


def test_runs_that_are_numbered_are_no_ranks(tmp_path: Path) -> None:
    for name in ("run-1.pt", "run-2.pt", "frank1.pt", "frank2.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    assert len(stockpot.expand_paths([tmp_path])) == 2  # run-* stand for the folder


PROGRAM = """
import os, sys, torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
try:
    from torch.distributed.tensor import Shard, distribute_tensor
except ImportError:  # torch 2.4
    from torch.distributed._tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
full = {"a.w": torch.randn(10, 6), "b": torch.randn(7), "c": torch.randn(4, 8)}
how = {"a.w": [Shard(0)], "b": [Shard(0)], "c": [Shard(1)]}
model = {name: distribute_tensor(value, mesh, how[name]) for name, value in full.items()}
dcp.save({"model": model, "optimizer": {"m": torch.ones(2)}}, checkpoint_id=sys.argv[1])
if dist.get_rank() == 0:
    torch.save(full, sys.argv[1] + ".pt")
dist.barrier()
os._exit(0)  # taken down one by one, threads of gloo abort now and then
"""


@pytest.mark.slow
def test_what_two_ranks_wrote_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*run, str(tmp_path / "program.py"), str(tmp_path / "step")],
        check=True,
        capture_output=True,
    )
    checkpoint = stockpot.open(tmp_path / "step")
    full = torch.load(tmp_path / "step.pt", weights_only=True)
    assert set(checkpoint) == set(full)
    for name, value in full.items():
        assert torch.equal(checkpoint.read(name), value)


def covers(shape: tuple[int, ...], chunks: list[Any]) -> bool:
    """Whether chunks, each (begin, sizes), cover a tensor of `shape`."""
    return _is_covered(shape, [_Chunk(begin, sizes, "x", 0, 0) for begin, sizes in chunks])


def test_a_path_of_many_parts_is_refused(tmp_path: Path) -> None:
    tensors = {str(i): torch.ones(1) for i in range(3)}
    long = {name: (*["a"] * 64, name) for name in tensors}
    longest = {name: path[1:] for name, path in long.items()}
    folder = saved(tmp_path / "a", tensors, {}, paths=longest)
    assert set(stockpot.open(folder, key=".".join(["a"] * 63))) == set(tensors)
    with pytest.raises(CheckpointFormatError, match="65 levels deep, at most 64"):
        stockpot.open(saved(tmp_path / "b", tensors, {}, paths=long))


def test_covering_is_what_counting_every_element_says() -> None:
    generator = random.Random(0)
    covered = 0
    for _ in range(3000):
        shape = tuple(generator.randint(1, 4) for _ in range(generator.randint(1, 3)))
        chunks = [((0,) * len(shape), shape)]
        for _ in range(generator.randint(0, 6)):  # cut one of them in two
            begin, sizes = chunks.pop(generator.randrange(len(chunks)))
            axis = generator.randrange(len(shape))
            n = generator.randint(0, sizes[axis])
            first, rest, after = list(sizes), list(sizes), list(begin)
            first[axis], rest[axis], after[axis] = n, sizes[axis] - n, begin[axis] + n
            chunks += [(begin, tuple(first)), (tuple(after), tuple(rest))]
        if generator.random() < 0.5:  # move one of them
            begin, sizes = chunks.pop(generator.randrange(len(chunks)))
            chunks.append((tuple(generator.randint(0, n) for n in shape), sizes))
        generator.shuffle(chunks)
        counted = np.zeros(shape, np.int64)
        inside = True
        for begin, sizes in chunks:
            ends = [b + n for b, n in zip(begin, sizes, strict=True)]
            inside &= all(end <= n for end, n in zip(ends, shape, strict=True))
            counted[tuple(slice(b, e) for b, e in zip(begin, ends, strict=True))] += 1
        expected = inside and bool((counted == 1).all())
        covered += expected
        assert covers(shape, chunks) is expected, (shape, chunks)
    assert 500 < covered < 2500


@pytest.mark.parametrize("axis", [0, 1])
def test_many_chunks_beside_each_other_are_checked_without_comparing_all(axis: int) -> None:
    n = 20_000
    shape = (n, 1) if axis == 0 else (1, n)
    chunks = [((i, 0) if axis == 0 else (0, i), (1, 1)) for i in range(n)]
    assert covers(shape, chunks)
    assert not covers(shape, [*chunks[:-1], chunks[0]])
    # A chunk of two takes the place of two of one: no grid, and still every element once.
    merged = [chunks[0], (chunks[1][0], (2, 1) if axis == 0 else (1, 2)), *chunks[3:]]
    assert covers(shape, merged)
    grid = [((i, j), (1, 2)) for i in range(200) for j in range(0, 200, 2)]
    assert covers((200, 200), grid)


def test_chunks_that_meet_in_every_dimension_are_refused_where_they_are_many() -> None:
    for n, refused in ((3000, False), (6000, True)):
        chunks = [((i, 0), (n - i, 1)) for i in range(n)]  # each ends where the others do
        shape = (n * (n + 1) // 2, 1)
        if not refused:
            assert not covers(shape, chunks)
            continue
        with pytest.raises(_DamagedError, match="cannot be said in time"):
            covers(shape, chunks)


def test_chunks_that_cannot_be_compared_name_their_tensor(tmp_path: Path) -> None:
    tensor = torch.randn(4, 2)
    uneven: Blocks = {
        "w": [((0, 0), tensor[:3, :1]), ((0, 1), tensor[:, 1:]), ((3, 0), tensor[3:, :1])]
    }
    assert torch.equal(
        stockpot.open(saved(tmp_path / "a", {"w": tensor}, uneven)).read("w"), tensor
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_COMPARISONS_PER_CHUNK", 0)
        with pytest.raises(CheckpointFormatError, match="tensor 'w': its 3 chunks"):
            stockpot.open(tmp_path / "a")
