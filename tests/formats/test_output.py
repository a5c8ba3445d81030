from __future__ import annotations

import io
import json
import os
import pickle
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_bytes

import stockpot
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.formats import torchwriter
from stockpot.formats.base import agreed_metadata
from stockpot.formats.output import OutputPlan, OutputRequest, open_output
from stockpot.formats.placement import plan_output
from stockpot.formats.table import record_path
from stockpot.tensors.spec import DType, TensorSpec

ALL_TYPES = {
    DType.F64: torch.float64, DType.F32: torch.float32, DType.F16: torch.float16,
    DType.BF16: torch.bfloat16, DType.F8_E4M3: torch.float8_e4m3fn,
    DType.F8_E5M2: torch.float8_e5m2,
    DType.F8_E4M3FNUZ: torch.float8_e4m3fnuz, DType.F8_E5M2FNUZ: torch.float8_e5m2fnuz,
    DType.I64: torch.int64, DType.I32: torch.int32, DType.I16: torch.int16, DType.I8: torch.int8,
    DType.U64: torch.uint64, DType.U32: torch.uint32, DType.U16: torch.uint16,
    DType.U8: torch.uint8, DType.BOOL: torch.bool, DType.C64: torch.complex64,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # since torch 2.7
    ALL_TYPES[DType.F8_E8M0] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in ALL_TYPES.items()}


def specs_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {n: TensorSpec(n, NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()}


def planned(path: Path, specs: dict[str, TensorSpec], **options: Any) -> OutputPlan:
    return plan_output(OutputRequest(path=path, specs=specs, **options))


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def save(path: Path, tensors: dict[str, torch.Tensor], *, force: bool = False, **options) -> None:
    plan = planned(path, specs_of(tensors), **options)
    skip = {name for group in options.get("tied", ()) for name in group[1:]}
    with open_output(plan, force=force) as out:
        for name, tensor in tensors.items():
            if name not in skip:
                data = raw(tensor)
                for at in range(0, len(data), 1000):
                    out.write(name, at, data[at : at + 1000])


@pytest.fixture
def every_type() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in ALL_TYPES.values():
        name = str(dtype).removeprefix("torch.")
        values = torch.randint(0, 2, (3, 5), generator=generator)
        tensors[f"layer.{name}"] = values.to(dtype)
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 4)
    tensors["größe"] = torch.randn(700, generator=generator)
    return tensors


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert raw(found[name]) == raw(tensor), name


def known_to_safetensors(tensor: torch.Tensor) -> bool:
    try:
        save_bytes({"x": tensor})
    except KeyError:  # its table has the types of its time
        return False
    return True


def known_to_torch(tensor: torch.Tensor) -> bool:
    file = io.BytesIO()
    try:
        torch.save(tensor, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (KeyError, pickle.UnpicklingError):  # wide unsigned integers, in torch 2.4
        return False
    return True


def test_a_safetensors_file_has_the_bytes_that_the_safetensors_library_writes(
    tmp_path: Path, every_type: dict[str, torch.Tensor]
) -> None:
    known = {name: t for name, t in every_type.items() if known_to_safetensors(t)}
    save_file(known, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    save(tmp_path / "ours.safetensors", known)
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["soup.safetensors", "soup.pt", "soup"])
def test_bytes_do_not_depend_on_the_order_of_specs_or_of_writes(
    tmp_path: Path, every_type: dict[str, torch.Tensor], name: str
) -> None:
    backwards = dict(reversed(every_type.items()))
    found = []
    for folder, tensors in (("one", every_type), ("two", backwards)):
        save(tmp_path / folder / name, tensors, max_shard_bytes=500, metadata={"b": "1", "a": "2"})
        top = tmp_path / folder / name
        files = sorted(top.iterdir()) if top.is_dir() else [top]
        found.append({file.name: file.read_bytes() for file in files})
    assert found[0] == found[1]


@pytest.mark.parametrize("mmap", [False, True])
def test_a_torch_file_is_read_by_torch_without_trust(
    tmp_path: Path, every_type: dict[str, torch.Tensor], mmap: bool
) -> None:
    known = {name: t for name, t in every_type.items() if known_to_torch(t)}
    save(tmp_path / "soup.pt", known)
    loaded = torch.load(tmp_path / "soup.pt", weights_only=True, mmap=mmap)
    assert_same(loaded, known)
    assert list(loaded)[:2] == ["empty", "größe"]


def test_a_torch_file_is_a_sound_archive_with_right_checksums(
    tmp_path: Path, every_type: dict[str, torch.Tensor]
) -> None:
    save(tmp_path / "soup.pt", every_type)
    with zipfile.ZipFile(tmp_path / "soup.pt") as archive:
        assert archive.testzip() is None
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}


def test_values_in_a_torch_file_are_aligned(tmp_path: Path) -> None:
    specs = {f"t{i}": TensorSpec(f"t{i}", DType.F32, (i,)) for i in range(20)}
    offsets = torchwriter.plan_file("x.pt", specs).offsets
    assert all(offset % 64 == 0 for offset in offsets.values())


def test_a_torch_file_beyond_4_GiB_is_a_sound_archive(tmp_path: Path) -> None:
    """Sparse on the disk: zeros but for a few bytes at the end of the large tensors."""
    n = (1 << 32) // 4 + 16
    specs = {name: TensorSpec(name, DType.F32, (n,)) for name in ("a", "b")}
    specs["c"] = TensorSpec("c", DType.F32, (2,))
    layout = torchwriter.plan_file("big.pt", specs)
    path = tmp_path / "big.pt"
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, data in layout.fixed:
            file.seek(offset)
            file.write(data)
        for name, value in (("b", 7.0), ("c", 9.0)):
            file.seek(layout.offsets[name] + specs[name].nbytes - 4)
            file.write(np.float32(value).tobytes())
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["b"][-1] == 7.0
    assert loaded["c"].tolist() == [0.0, 9.0]
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/1").file_size == 4 * n
        assert archive.getinfo("archive/data/2").header_offset > 1 << 33


def test_tied_tensors_of_a_torch_file_share_their_storage(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"embed": shared, "head": shared, "other": torch.ones(2)}
    save(tmp_path / "soup.pt", tensors, tied=[("embed", "head")])
    loaded = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert_same(loaded, tensors)
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()


def test_tied_tensors_are_written_out_under_every_name_in_safetensors(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"embed": shared, "head": shared, "other": torch.ones(2)}
    save(tmp_path / "soup.safetensors", tensors, tied=[("embed", "head")])
    assert_same(load_file(tmp_path / "soup.safetensors"), tensors)


def test_a_folder_is_sharded_with_an_index_that_names_every_tensor(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.w": torch.full((100,), float(i)) for i in range(12)}
    save(tmp_path / "soup", tensors, max_shard_bytes=1200)
    index = json.loads((tmp_path / "soup" / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == 12 * 400
    assert index["weight_map"]["layers.2.w"] == "model-00001-of-00004.safetensors"
    assert index["weight_map"]["layers.10.w"] == "model-00004-of-00004.safetensors"
    loaded = {}
    for name in set(index["weight_map"].values()):
        loaded |= load_file(tmp_path / "soup" / name)
    assert_same(loaded, tensors)


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    data = raw(values)
    plan = planned(tmp_path / "soup.pt", specs_of({"w": values}))
    with open_output(plan) as out:

        def work(first: int) -> None:
            for at in range(first * 1000, len(data), 4000):
                out.write("w", at, data[at : at + 1000])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with zipfile.ZipFile(tmp_path / "soup.pt") as archive:
        assert archive.testzip() is None
    assert torch.equal(torch.load(tmp_path / "soup.pt", weights_only=True)["w"], values)


def test_numpy_arrays_of_any_shape_can_be_written(tmp_path: Path) -> None:
    specs = {
        "s": TensorSpec("s", DType.F32, ()),
        "m": TensorSpec("m", DType.F16, (2, 2)),
        "e": TensorSpec("e", DType.F32, (0, 3)),
    }
    with open_output(planned(tmp_path / "x.safetensors", specs)) as out:
        out.write("s", 0, np.array(2.5, dtype=np.float32))
        out.write("m", 0, np.eye(2, dtype=np.float16))
        out.write("e", 0, np.zeros((0, 3), dtype=np.float32))
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["s"].item() == 2.5
    assert torch.equal(loaded["m"], torch.eye(2, dtype=torch.float16))


def test_an_output_with_missing_bytes_is_not_kept(tmp_path: Path) -> None:
    plan = planned(tmp_path / "x.pt", specs_of({"a": torch.ones(4), "b": torch.ones(4)}))
    with (
        pytest.raises(CheckpointError, match=r"2 tensors .* 'a' \(8 bytes of 16\)"),
        open_output(plan) as out,
    ):
        out.write("a", 0, bytes(8))
    assert list(tmp_path.iterdir()) == []


def test_bytes_beyond_a_tensor_are_refused(tmp_path: Path) -> None:
    plan = planned(tmp_path / "x.pt", specs_of({"a": torch.ones(4)}))
    with (
        pytest.raises(ValueError, match="has no bytes 8…24"),
        open_output(plan) as out,
    ):
        out.write("a", 8, bytes(16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_nothing_is_overwritten_without_force(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, {"a": torch.ones(1)})
    with pytest.raises(OutputExistsError, match="force=True"):
        save(tmp_path / name, {"a": torch.zeros(1)})
    save(tmp_path / name, {"a": torch.zeros(1)}, force=True)
    file = tmp_path / name
    loaded = load_file(file if file.is_file() else file / "model.safetensors")
    assert loaded["a"].item() == 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_a_failure_leaves_the_older_output_as_it_was(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, {"a": torch.ones(1)})
    plan = planned(tmp_path / name, specs_of({"a": torch.zeros(1)}))
    with pytest.raises(RuntimeError), open_output(plan, force=True) as out:
        out.write("a", 0, bytes(4))
        raise RuntimeError
    file = tmp_path / name
    assert load_file(file if file.is_file() else file / "model.safetensors")["a"].item() == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_output_is_never_one_of_its_inputs(tmp_path: Path) -> None:
    source = tmp_path / "models" / "a.safetensors"
    save(source, {"a": torch.ones(1)})
    (tmp_path / "link").symlink_to(tmp_path / "models")
    specs = specs_of({"a": torch.ones(1)})
    for path in (source, tmp_path / "link" / "a.safetensors", tmp_path / "models"):
        with pytest.raises(OutputExistsError, match="the ingredient"):
            planned(path, specs, inputs=(stockpot.open(source),))


PARTS = {
    "model": {},
    "adapter_model": {"adapter_config.json": b"{}"},
    "weights": {},
    "diffusion_pytorch_model": {},
}
"""What folders call their weights, and what makes them be read as something else."""


@pytest.mark.parametrize("older", PARTS)
@pytest.mark.parametrize("newer", PARTS)
@pytest.mark.parametrize("max_shard_bytes", [4, None])
def test_an_older_output_goes_however_it_called_its_weights(
    tmp_path: Path, older: str, newer: str, max_shard_bytes: int | None
) -> None:
    path = tmp_path / "x"
    made = {"a": torch.ones(1), "b": torch.ones(1)}
    save(path, made, stem=older, rewritten=PARTS[older], max_shard_bytes=max_shard_bytes)
    before = set(os.listdir(path))
    for mine in ("stockpot.json", "notes.txt", "model.onnx"):
        (path / mine).write_text("{}")
    (path / "logs").mkdir()
    (path / "logs" / "mine.safetensors").touch()
    options: dict[str, Any] = {"stem": newer, "rewritten": PARTS[newer]}
    gone = planned(path, specs_of({"c": torch.ones(1)}), **options).replaced()
    assert set(gone) == before | {"stockpot.json"}
    save(path, {"c": torch.zeros(1)}, force=True, **options)
    new = {f"{newer}.safetensors", *PARTS[newer]}
    assert set(os.listdir(path)) == {*new, "notes.txt", "model.onnx", "logs"}
    assert os.listdir(path / "logs") == ["mine.safetensors"]
    assert [*stockpot.open(path)] == ["c"]


@pytest.mark.parametrize(
    ("stem", "held"),
    [
        ("weights", ["model.safetensors"]),
        ("weights", ["other.safetensors"]),
        ("weights", ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]),
        ("model", ["adapter_config.json"]),
        ("model", ["unet/model.safetensors", "unet/config.json", "model_index.json"]),
        ("model", ["global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
        ("model", [".metadata"]),
    ],
)
def test_an_output_is_not_put_beside_what_would_be_read_in_its_place(
    tmp_path: Path, stem: str, held: list[str]
) -> None:
    """Whose it is, nobody knows where there is no record."""
    path = tmp_path / "x"
    for name in held:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    with pytest.raises(OutputExistsError, match=rf"x holds .*{held[0]}.*choose another output"):
        planned(path, specs_of({"a": torch.ones(1)}), stem=stem)
    assert {p.relative_to(path).as_posix() for p in path.rglob("*.*")} == set(held)


def test_what_is_not_read_in_place_of_an_output_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    (path / "checkpoint-500").mkdir(parents=True)
    held = ["pytorch_model.bin", "tf_model.h5", "config.json", "checkpoint-500/model.safetensors"]
    for name in held:
        (path / name).write_text("{}")
    for _ in range(2):  # the second time over an output of ours
        save(path, {"a": torch.ones(1)}, force=True)
        (path / "stockpot.json").write_text("{}")
        assert all((path / name).read_text() == "{}" for name in held)


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(tmp_path: Path) -> None:
    specs = {"a": TensorSpec("a", DType.F32, (1 << 55,))}
    plan = planned(tmp_path / "x.safetensors", specs)
    with pytest.raises(CheckpointError, match=r"takes 144\.1 PB"), open_output(plan):
        pass
    assert list(tmp_path.iterdir()) == []


def test_types_that_torch_lacks_are_refused_in_torch_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w is F4.*write \.safetensors"):
        planned(tmp_path / "x.pt", {"w": TensorSpec("w", DType.F4, (2,))})


def test_lightning_checkpoints_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"write a \.pt file"):
        planned(tmp_path / "x.ckpt", {})


def test_the_record_of_older_weights_goes_with_them(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    plan = planned(path, specs_of({"a": torch.ones(1)}))
    with open_output(plan) as out:
        out.write("a", 0, bytes(4))
        out.record(b"{}")
    assert record_path(path).read_bytes() == b"{}"
    save(path, {"a": torch.zeros(1)}, force=True)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_the_record_of_a_folder_lies_inside(tmp_path: Path) -> None:
    plan = planned(tmp_path / "x", specs_of({"a": torch.ones(1)}))
    with open_output(plan) as out:
        out.write("a", 0, bytes(4))
        out.record(b"{}")
    assert (tmp_path / "x" / "stockpot.json").read_bytes() == b"{}"
    assert record_path(tmp_path / "x") == tmp_path / "x" / "stockpot.json"


def test_the_plan_knows_the_size_on_disk(
    tmp_path: Path, every_type: dict[str, torch.Tensor]
) -> None:
    for name in ("x.safetensors", "x.pt", "x"):
        plan = planned(tmp_path / name, specs_of(every_type), max_shard_bytes=300)
        save(tmp_path / name, every_type, max_shard_bytes=300)
        top = tmp_path / name
        files = list(top.iterdir()) if top.is_dir() else [top]
        assert plan.n_bytes == sum(file.stat().st_size for file in files)


def test_metadata_that_all_agree_on_is_kept() -> None:
    class Stub:
        def __init__(self, metadata: dict[str, str]) -> None:
            self.metadata = metadata

    one = Stub({"format": "pt", "task": "x", "total_size": "5"})
    two = Stub({"format": "pt", "task": "y", "total_size": "5"})
    assert agreed_metadata([one, two]) == {"format": "pt"}  # type: ignore[list-item]


@pytest.mark.skipif("STOCKPOT_TESTS_AS" in os.environ, reason="it asks Linux for what is gone")
def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=50,
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    save(tmp_path / "soup", tensors, config_from=tmp_path / "model", max_shard_bytes=2000)
    assert (tmp_path / "soup" / "model.safetensors.index.json").exists()
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "soup")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_record_is_not_put_beside_weights_that_were_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    plan = planned(path, specs_of({"a": torch.ones(1)}))
    with pytest.raises(OutputExistsError), open_output(plan) as out:
        out.write("a", 0, bytes(4))
        out.record(b"{}")
        path.write_text("a rival was faster")
    assert path.read_text() == "a rival was faster"
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_who_is_refused_at_the_end_leaves_the_record_of_who_was_first(tmp_path: Path) -> None:
    path = tmp_path / "soup.safetensors"
    specs = specs_of({"a": torch.zeros(1)})
    with pytest.raises(OutputExistsError), open_output(planned(path, specs)) as slow:
        slow.write("a", 0, bytes(4))
        slow.record(b'{"of": "the slow one"}')
        with open_output(planned(path, specs)) as first:
            first.write("a", 0, bytes(4))
            first.record(b'{"of": "the first"}')
    assert record_path(path).read_bytes() == b'{"of": "the first"}'
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["soup.safetensors", "soup"])
def test_of_two_that_overwrite_one_leaves_weights_and_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    specs = specs_of({"a": torch.zeros(1)})
    barrier = threading.Barrier(4)

    def write(i: int) -> None:
        try:
            for _ in range(5):
                with open_output(planned(path, specs), force=True) as out:
                    out.write("a", 0, np.float32(i).tobytes())
                    out.record(str(i).encode())
                    barrier.wait(timeout=300)  # a busy disk takes its time
        except BaseException:
            barrier.abort()  # nobody is to wait for one that failed
            raise

    with ThreadPoolExecutor(4) as threads:
        errors = [written.exception() for written in [threads.submit(write, i) for i in range(4)]]
    # Who fails first says why; the others only that somebody did.
    for error in sorted(filter(None, errors), key=lambda e: isinstance(e, BrokenBarrierError)):
        raise error
    file = path if path.is_file() else path / "model.safetensors"
    assert load_file(file)["a"].item() == float(record_path(path).read_text())
