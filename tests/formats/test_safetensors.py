"""The safetensors reader: valid files are read, all others refused before they cost anything."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stockpot
import stockpot.formats as cp
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.safetensors import MAX_HEADER_BYTES, parse_header
from stockpot.tensors.spec import DType
from stockpot.testing import READER_CHECKS, sample_tensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def built(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> np.ndarray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = (len(text) if length is None else length).to_bytes(8, "little")
    return np.frombuffer(prefix + text + data, np.uint8)


def entry(**change: Any) -> dict[str, Any]:
    return {"w": {**F32, **change}}


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any, tmp_path: Path) -> None:
    save_file(sample_tensors(), tmp_path / "m.safetensors", metadata={"format": "pt"})
    check(lambda: cp.open(tmp_path / "m.safetensors"), sample_tensors())


def test_metadata_is_kept_and_padding_after_the_header_allowed() -> None:
    text = json.dumps({"__metadata__": {"a": "ü"}, **entry()}).encode() + b"   "
    header = parse_header(built(text), "m")
    assert header.metadata == {"a": "ü"}
    assert header.offsets == {"w": 8 + len(text)}


def test_a_file_without_tensors_is_valid() -> None:
    assert parse_header(built({}, b""), "m").specs == {}


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype_of_the_format_has_its_size(dtype: DType) -> None:
    n_bytes = 4 * dtype.bits // 8
    info = {"dtype": dtype.value, "shape": [2, 2], "data_offsets": [0, n_bytes]}
    spec = parse_header(built({"w": info}, b"\0" * n_bytes), "m").specs["w"]
    assert (spec.dtype, spec.shape, spec.nbytes) == (dtype, (2, 2), n_bytes)
    with pytest.raises(CheckpointFormatError, match="need"):
        parse_header(built({"w": {**info, "data_offsets": [0, n_bytes + 1]}}, b"\0" * 9), "m")


def test_a_part_of_a_byte_is_refused() -> None:
    info = {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}
    with pytest.raises(CheckpointFormatError, match="whole number of bytes"):
        parse_header(built({"w": info}, b"\0\0"), "m")


def two(second: list[int], first: list[int] | None = None) -> dict[str, Any]:
    size = (second[1] - second[0]) // 4
    return {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": first or [0, 4]},
        "b": {"dtype": "F32", "shape": [size], "data_offsets": second},
    }


ATTACKS: dict[str, tuple[np.ndarray, str]] = {
    "empty file": (np.zeros(0, np.uint8), "0 bytes"),
    "no length": (np.zeros(7, np.uint8), "7 bytes"),
    "huge length": (built(entry(), length=2**63), "claims"),
    "length over the cap": (built(entry(), length=MAX_HEADER_BYTES + 1), "claims"),
    "length over the file": (built(entry(), length=5000), "cut off"),
    "not an object": (built([1]), "begin with"),
    "no JSON": (built(b"{nope"), "JSON"),
    "two values": (built(b"{}{}", b""), "JSON"),
    "not UTF-8": (built(b'{"\xff": 1}'), "UTF-8"),
    "half a surrogate pair": (built(rb'{"\ud800": ' + json.dumps(F32).encode() + b"}"), "Unicode"),
    "deep": (built(b'{"a":' + b"[         " * 10_000), "deep"),
    "deep and dense": (built(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "empty lists without end": (built(b'{"a":[' + b"[]," * 1000 + b"[]]}"), "by no object"),
    "many digits": (built(b'{"a":' + b"1" * 10_000 + b"}"), "JSON"),
    "NaN": (built(b'{"w": NaN}'), "NaN"),
    "a name twice": (built(b'{"w": {}, "w": {}}'), "'w' twice"),
    "a field twice": (built(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' twice"),
    "no description": (built({"w": None}), "described by no object"),
    "unknown dtype": (built(entry(dtype="F33")), "known dtype"),
    "dtype of another kind": (built(entry(dtype=["F32"])), "known dtype"),
    "negative size": (built(entry(shape=[-2])), "sizes"),
    "two negative sizes": (built(entry(shape=[-1, -2])), "sizes"),
    "size as float": (built(entry(shape=[2.0])), "sizes"),
    "size as bool": (built(entry(shape=[True, 2])), "sizes"),
    "size over 63 bits": (built(entry(shape=[2**63])), "sizes"),
    "shape no list": (built(entry(shape={"0": 2})), "sizes"),
    "shape overflows": (built(entry(shape=[2**62, 2**62])), "need"),
    "many dimensions": (built(entry(shape=[1] * 65 + [2])), "dimensions"),
    "offsets swapped": (built(entry(data_offsets=[8, 0])), "bytes"),
    "negative offset": (built(entry(data_offsets=[-8, 0])), "positions"),
    "three offsets": (built(entry(data_offsets=[0, 4, 8])), "positions"),
    "no offsets": (built({"w": {"dtype": "F32", "shape": [2]}}), "positions"),
    "size does not fit": (built(entry(shape=[3])), "has 8 bytes.*need 12"),
    "overlap": (built(two([0, 4])), "overlaps"),
    "partial overlap": (built(two([2, 6])), "overlaps"),
    "hole": (built(two([8, 12]), b"\0" * 12), "hole"),
    "hole at the start": (built(entry(data_offsets=[8, 16]), b"\0" * 16), "hole"),
    "data cut off": (built(entry(), b"\0" * 7), "cut off"),
    "data left over": (built(entry(), b"\0" * 9), "holds 9"),
    "metadata no object": (built({"__metadata__": [], **entry()}), "__metadata__"),
    "metadata no text": (built({"__metadata__": {"a": 1}, **entry()}), "text to text"),
}


@pytest.mark.parametrize(("data", "match"), ATTACKS.values(), ids=ATTACKS)
def test_a_damaged_file_is_refused_with_the_reason(data: np.ndarray, match: str) -> None:
    with pytest.raises(CheckpointFormatError, match=match) as caught:
        parse_header(data, "m.safetensors")
    assert str(caught.value).startswith("m.safetensors is not a valid safetensors file: ")
    assert len(str(caught.value)) < 500


def test_an_offset_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    info = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    values = np.array([1.5, -2], "<f4")
    built(info, b"\7" + values.tobytes()).tofile(tmp_path / "m.safetensors")
    checkpoint = cp.open(tmp_path / "m.safetensors")
    assert checkpoint.read("w").tolist() == [1.5, -2]
    assert checkpoint["w"].array(checkpoint.raw("w")).tolist() == [1.5, -2]


def test_wrapper_prefixes_are_removed_when_all_names_carry_them(tmp_path: Path) -> None:
    save_file({"_orig_mod.w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"module.w": torch.ones(2), "x": torch.ones(1)}, tmp_path / "b.safetensors")
    assert list(cp.open(tmp_path / "a.safetensors")) == ["w"]
    assert "removed" in cp.open(tmp_path / "a.safetensors").notes[0]
    assert cp.open(tmp_path / "a.safetensors").read("w").tolist() == [1, 1]
    assert set(cp.open(tmp_path / "b.safetensors")) == {"module.w", "x"}
    assert cp.open(tmp_path / "b.safetensors").notes == ()


def test_the_content_decides_what_a_file_with_another_name_is(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.bin")
    assert cp.open(tmp_path / "model.bin").format == "safetensors"


def test_a_file_that_changed_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2)}, path)
    checkpoint = cp.open(path)
    save_file({"w": torch.zeros(2)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        checkpoint.raw("w")


def test_no_descriptor_is_kept_while_nothing_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = [cp.open(tmp_path / "m.safetensors") for _ in range(50)]
    for checkpoint in opened:
        checkpoint.raw("w").sum()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing at"):
        cp.open(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError):
        cp.open("org/name")
    with pytest.raises(CheckpointFormatError, match="not a regular file"):
        cp.open("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointFormatError, match="not a regular file"):
        cp.open(tmp_path / "pipe")


def calls_of(function: Callable[[], object]) -> int:
    """How many functions, of Python and of C, `function` calls: its work, on any machine."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_on_a_header_grows_as_its_tensors_do() -> None:
    def header(n: int) -> bytes:
        entries = {
            f"model.layers.{i}.self_attn.q_proj.weight": {
                "dtype": "BF16", "shape": [4, 8], "data_offsets": [64 * i, 64 * i + 64],
            }
            for i in range(n)
        }  # fmt: skip
        return built(entries, b"\0" * 64 * n)

    few, many = header(1_000), header(10_000)
    assert calls_of(lambda: parse_header(many, "m")) < 11 * calls_of(lambda: parse_header(few, "m"))
    specs = parse_header(many, "m").specs
    assert math.fsum(spec.numel for spec in specs.values()) == 320_000


def test_a_tensor_under_the_name_of_the_metadata_is_refused_before_it_is_written(
    tmp_path: Path,
) -> None:
    torch.save(
        {"state_dict": {"__metadata__": torch.ones(2), "b": torch.ones(3)}}, tmp_path / "a.pt"
    )
    soup = stockpot.average([tmp_path / "a.pt"])
    for name in ("soup.safetensors", "soup"):
        with pytest.raises(CheckpointError, match="'__metadata__', the name of the metadata"):
            soup.save(tmp_path / name)
        assert not (tmp_path / name).exists()
    soup.save(tmp_path / "soup.npz")
    assert set(cp.open(tmp_path / "soup.npz")) == {"__metadata__", "b"}
