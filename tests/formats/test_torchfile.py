"""Files of torch.save: read as data, mapped, and never run."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stockpot
import stockpot.formats as cp
from stockpot.errors import CheckpointFormatError, UnsafeCheckpointError
from stockpot.testing import READER_CHECKS, sample_tensors

LEGACY = {"_use_new_zipfile_serialization": False}


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_the_reader_conforms(check: Any, options: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", sample_tensors(), **options)
    check(lambda: cp.open(path), sample_tensors())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_of_python_3_is_read(protocol: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"w": torch.arange(6.0)}, pickle_protocol=protocol)
    assert torch.equal(cp.open(path).read("w"), torch.arange(6.0))


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_views_are_read_in_order_whatever_their_strides(
    options: dict[str, Any], tmp_path: Path
) -> None:
    x = torch.arange(240.0).reshape(4, 5, 12)
    views = {
        "t": x.transpose(0, 2),
        "step": x[1:, ::2, 3:],
        "expanded": x[0, 0, :1].expand(3, 7),
        "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": x[2, 3, 4],
        "part": x[1],
    }
    checkpoint = cp.open(saved(tmp_path / "m.pt", views, **options))
    for name, view in views.items():
        assert torch.equal(checkpoint.read(name), view), name
    assert checkpoint.tied == ()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_shared_storage_is_tied_and_counted_once(options: dict[str, Any], tmp_path: Path) -> None:
    shared = torch.randn(5, 3)
    state = {"embed": shared, "head": shared, "head_t": shared.T, "b": torch.zeros(2)}
    checkpoint = cp.open(saved(tmp_path / "m.pt", state, **options))
    assert checkpoint.tied == (("embed", "head"),)
    assert checkpoint.n_parameters == 15 + 15 + 2


def test_new_dtypes_are_read(tmp_path: Path) -> None:
    types = {"F8_E4M3": torch.float8_e4m3fn, "C64": torch.complex64, "U16": torch.uint16}
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 5):
        del types["U16"]  # it cannot be saved
    state = {name: torch.ones(3).to(dtype) for name, dtype in types.items()}
    checkpoint = cp.open(saved(tmp_path / "m.pt", state))
    assert [checkpoint[n].dtype.value for n in state] == list(types)
    assert torch.equal(checkpoint.read("C64"), state["C64"])


def test_a_lightning_checkpoint_is_read_and_its_classes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    omegaconf = types.ModuleType("omegaconf")
    config = type("DictConfig", (), {"__module__": "omegaconf"})
    omegaconf.DictConfig = config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", omegaconf)
    model = nn.Linear(3, 2)
    instance = config()
    instance.content = {"lr": np.float64(0.1), "folder": pathlib.Path("data")}
    path = saved(
        tmp_path / "last.ckpt",
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.5",
            "state_dict": model.state_dict(),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
            "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5), "kth": {"a": 1}}},
            "hyper_parameters": {
                "args": argparse.Namespace(lr=0.1),
                "cfg": instance,
                "table": np.arange(1000),
                "counts": collections.defaultdict(int, a=1),
            },
        },
    )
    monkeypatch.delitem(sys.modules, "omegaconf")
    checkpoint = cp.open(path)
    assert torch.equal(checkpoint.read("weight"), model.weight)
    assert set(checkpoint) == {"weight", "bias"}
    assert checkpoint.section == "state_dict"
    said = " ".join(checkpoint.notes)
    for name in ("argparse.Namespace", "omegaconf.DictConfig", "pathlib.PosixPath"):
        assert name in said
    assert "omegaconf" not in sys.modules


class Evil:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("call", [os.system, eval, exec], ids=lambda call: call.__name__)
def test_a_pickle_with_code_is_refused_and_not_run(
    call: Callable[..., Any], options: dict[str, Any], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    code = f"touch {mark}" if call is os.system else f"open({str(mark)!r}, 'w')"
    state = {"w": torch.ones(2), "extra": Evil(call, code)}
    path = saved(tmp_path / "m.pt", state, **options)
    with pytest.raises(UnsafeCheckpointError, match=r"system|eval|exec"):
        cp.open(path)
    assert not mark.exists()


def test_code_in_a_plain_pickle_is_not_run_either(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(Evil(os.system, f"touch {tmp_path / 'mark'}")))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        cp.open(path)
    assert not (tmp_path / "mark").exists()


def test_what_is_not_on_the_list_of_code_is_not_run_either(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "extra": Evil(pathlib.Path.touch, tmp_path / "mark")}
    checkpoint = cp.open(saved(tmp_path / "m.pt", state))
    assert set(checkpoint) == {"w"}
    assert not (tmp_path / "mark").exists()


class Quantised(torch.Tensor):
    pass


def test_a_tensor_that_needs_a_class_is_refused_by_name(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "w": torch.ones(2).as_subclass(Quantised)}
    with pytest.raises(UnsafeCheckpointError, match=r"tensor 'w' is a .*Quantised"):
        cp.open(saved(tmp_path / "m.pt", state))


def test_a_sparse_tensor_is_refused_by_name(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "s": torch.eye(3).to_sparse()}
    with pytest.raises(UnsafeCheckpointError, match=r"'s' is a torch\._utils\._rebuild_sparse"):
        cp.open(saved(tmp_path / "m.pt", state))


def test_attributes_of_a_parameter_do_not_matter(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "mine"  # type: ignore[attr-defined]
    tensor = torch.zeros(2)
    tensor.note = "mine"  # type: ignore[attr-defined]
    checkpoint = cp.open(saved(tmp_path / "m.pt", {"p": parameter, "t": tensor}))
    assert checkpoint.read("p").tolist() == [1, 1]
    assert checkpoint.read("t").tolist() == [0, 0]


def test_a_whole_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"Linear.*state_dict\(\)"):
        cp.open(saved(tmp_path / "m.pt", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "section",
    ["state_dict", "model", "model_state_dict", "ema", "module", "net", "weights_of_mine"],
)
def test_the_only_section_with_tensors_is_found(section: str, tmp_path: Path) -> None:
    value = {section: {"w": torch.ones(2)}, "epoch": 1, "optimizer": {"m": torch.zeros(2)}}
    checkpoint = cp.open(saved(tmp_path / "m.pt", value))
    assert checkpoint.section == section
    assert checkpoint.read("w").tolist() == [1, 1]
    assert section in checkpoint.notes[0]


def test_a_random_state_at_the_top_does_not_hide_the_model(tmp_path: Path) -> None:
    value = {"model": {"w": torch.ones(2)}, "rng": torch.get_rng_state()}
    assert cp.open(saved(tmp_path / "m.pt", value)).section == "model"


def test_several_sections_are_listed_and_key_chooses(tmp_path: Path) -> None:
    value = {"model": {"w": torch.ones(2)}, "ema": {"inner": {"w": torch.zeros(2)}}}
    value["ema"]["w"] = torch.full((2,), 7.0)  # type: ignore[assignment]
    path = saved(tmp_path / "m.pt", value)
    with pytest.raises(CheckpointFormatError, match=r"'ema', 'model'.*--key"):
        cp.open(path)
    assert cp.open(path, key="model").read("w").tolist() == [1, 1]
    assert cp.open(path, key="ema.inner").read("w").tolist() == [0, 0]
    with pytest.raises(
        CheckpointFormatError, match=r"no tensors at key 'epoch'.*'ema', 'ema.inner'"
    ):
        cp.open(path, key="epoch")


def test_a_section_whose_name_holds_a_dot_can_be_chosen(tmp_path: Path) -> None:
    value = {"a.b": {"c": {"w": torch.ones(2)}}, "model": {"w": torch.zeros(2)}}
    assert cp.open(saved(tmp_path / "m.pt", value), key="a.b.c").read("w").tolist() == [1, 1]


def test_wrapper_prefixes_are_removed_and_said(tmp_path: Path) -> None:
    state = {f"module._orig_mod.{n}": t for n, t in nn.Linear(2, 2).state_dict().items()}
    checkpoint = cp.open(saved(tmp_path / "m.pt", {"state_dict": state}))
    assert set(checkpoint) == {"weight", "bias"}
    assert "'module._orig_mod.' was removed" in " ".join(checkpoint.notes)


def test_fingerprints_of_two_sections_are_not_confused_by_the_cache(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}})
    assert cp.open(path, key="model").fingerprint != cp.open(path, key="ema").fingerprint


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """The archive at `path` with its members changed; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            new = change(name, data)
            if new is not None:
                archive.writestr(name, new)
    return path


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    value = {"w": torch.arange(100.0)}

    def refused(match: str, path: Path) -> None:
        with pytest.raises(CheckpointFormatError, match=match):
            cp.open(path)

    def fresh(name: str) -> Path:
        return saved(tmp_path / name, value)

    def big(name: str, data: bytes) -> bytes:
        return b"big" if name.endswith("byteorder") else data

    def short(name: str, data: bytes) -> bytes:
        return data[:-4] if name.endswith("data/0") else data

    def absent(name: str, data: bytes) -> bytes | None:
        return None if name.endswith("data/0") else data

    refused("little-endian", rewritten(fresh("a.pt"), big))
    refused("storage has 396 bytes, expected 400", rewritten(fresh("b.pt"), short))
    refused("storage '0' is missing", rewritten(fresh("c.pt"), absent))
    same = rewritten(fresh("d.pt"), lambda _, d: d, compression=zipfile.ZIP_DEFLATED)
    refused("compressed", same)
    cut = fresh("e.pt")
    cut.write_bytes(cut.read_bytes()[:-30])
    refused("cut off", cut)
    cut = saved(tmp_path / "f.pt", value, **LEGACY)
    cut.write_bytes(cut.read_bytes()[:-30])
    refused("outside of the file", cut)
    with zipfile.ZipFile(tmp_path / "g.pt", "w") as archive:
        archive.writestr("notes.txt", "")
    refused("0 data.pkl", tmp_path / "g.pt")
    (tmp_path / "h.pt").write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 250)
    refused("tar archive", tmp_path / "h.pt")
    (tmp_path / "i.pt").write_bytes(b"")
    refused("neither", tmp_path / "i.pt")
    (tmp_path / "j.pt").write_bytes(pickle.dumps({"a": 1}))
    refused("not one of torch.save", tmp_path / "j.pt")
    refused("no dictionary of names to tensors", saved(tmp_path / "k.pt", {"epoch": 1}))


def test_an_unsupported_dtype_is_refused_by_name(tmp_path: Path) -> None:
    value = {"z": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(CheckpointFormatError, match=r"tensor 'z'.*ComplexDoubleStorage"):
        cp.open(saved(tmp_path / "m.pt", value))


def test_a_few_bytes_do_not_become_gigabytes(tmp_path: Path) -> None:
    value = {"w": torch.zeros(1).expand(2**40)}
    with pytest.raises(CheckpointFormatError, match="repeats its elements"):
        cp.open(saved(tmp_path / "m.pt", value))


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{root}/constants.pkl", b"\x80\x02).")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        cp.open(path)


def test_entries_that_are_no_tensors_are_left_out_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"w": torch.ones(2), "_extra_state": None, "version": 3})
    assert "_extra_state, version" in " ".join(cp.open(path).notes)


def test_a_copy_in_a_buffer_reads_the_same_as_torch_does(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(sample_tensors(seed=3), buffer)
    (tmp_path / "m.bin").write_bytes(buffer.getvalue())
    loaded = torch.load(tmp_path / "m.bin", weights_only=True)
    checkpoint = cp.open(tmp_path / "m.bin")
    assert all(torch.equal(checkpoint.read(name), loaded[name]) for name in loaded)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2],
        lambda t: t[:, 1::3],
        lambda t: t[None].transpose(0, 2),
        lambda t: t.reshape(4, 3, 7, 2).permute(2, 0, 3, 1),
        lambda t: t[1].expand(5, 14),
        lambda t: t[:, :1],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_any_piece_of_a_scattered_tensor_is_that_of_the_whole(
    tmp_path: Path, view: Any, dtype: torch.dtype
) -> None:
    tensor = view(torch.arange(12 * 14).reshape(12, 14).to(dtype))
    torch.save({"w": tensor}, tmp_path / "a.pt")
    checkpoint = cp.open(tmp_path / "a.pt")
    assert checkpoint.scattered("w")
    whole = checkpoint.raw("w")
    assert whole.tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()
    item = tensor.element_size()
    for start in range(0, whole.size, 5 * item):
        for stop in (start, start + item, start + 37 * item, whole.size):
            part = checkpoint.part("w", start, min(stop, whole.size))
            assert part.tobytes() == whole[start:stop].tobytes()


def test_scattered_tensors_are_averaged_in_little_memory(tmp_path: Path) -> None:
    tensors = [torch.randn(3000, 2000).t() for _ in range(2)]
    for i, tensor in enumerate(tensors):
        torch.save({"module.w": tensor}, tmp_path / f"{i}.pt")
    soup = stockpot.Mixture(stockpot.Ingredients([tmp_path / "0.pt", tmp_path / "1.pt"]))
    plan = soup.plan(tmp_path / "soup.pt", threads=1)
    assert plan.memory < stockpot.Mixture(
        stockpot.Ingredients([{"w": t.contiguous()} for t in tensors])
    ).plan(tmp_path / "x.pt", threads=1).memory + 2 * 2 * (4 << 20) + (1 << 20)
    soup.save(tmp_path / "soup.pt")
    expected = ((tensors[0].double() + tensors[1].double()) / 2).float()
    assert torch.equal(torch.load(tmp_path / "soup.pt", weights_only=True)["w"], expected)


@pytest.mark.parametrize(
    "value", [torch.empty(3, device="meta"), nn.Parameter(torch.empty(3, device="meta"))]
)
def test_a_tensor_without_values_is_refused_by_name(value: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="tensor 'm' has no values in the file"):
        cp.open(saved(tmp_path / "m.pt", {"w": torch.ones(2), "m": value}))


def test_a_tensor_of_a_class_without_values_is_refused_by_name(tmp_path: Path) -> None:
    value = torch.empty(3, device="meta").as_subclass(Quantised)
    with pytest.raises(CheckpointFormatError, match=r"tensor 'm' has no values.*Quantised"):
        cp.open(saved(tmp_path / "m.pt", {"w": torch.ones(2), "m": value}))


@pytest.mark.parametrize(("key", "said"), [(3, "key 3"), (None, "key None"), ((1, 2), "a tuple")])
def test_a_tensor_under_a_key_that_is_no_text_is_refused(
    key: object, said: str, tmp_path: Path
) -> None:
    state = {"w": torch.ones(2), key: torch.ones(2)}
    with pytest.raises(CheckpointFormatError, match=f"a tensor lies under {said}"):
        cp.open(saved(tmp_path / "m.pt", state))
    parts = {"net": {"encoder": state, "decoder": {"v": torch.ones(3)}}}
    with pytest.raises(CheckpointFormatError, match=f"a tensor lies under {said}"):
        cp.open(saved(tmp_path / "p.pt", parts))
