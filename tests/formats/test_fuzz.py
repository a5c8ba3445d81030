"""Whatever the bytes, opening ends in a checkpoint or in an error of the family, soon and small."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments.fuzz_headers import TENSOR, archive
from hypothesis import given, settings
from hypothesis import strategies as st

import stockpot.formats as cp
from stockpot.errors import CheckpointFormatError, UnsafeCheckpointError
from stockpot.formats.pickle_values import MalformedPickleError
from stockpot.formats.pickled import load
from stockpot.formats.safetensors import parse_header

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
INFO = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "BOOL", "?"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)


@given(
    st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), INFO | JSON, max_size=4),
    st.integers(0, 40),
)
@settings(max_examples=300)
def test_any_json_as_a_header_is_read_or_refused(header: dict[str, Any], n_data: int) -> None:
    text = json.dumps(header).encode()
    data = np.frombuffer(len(text).to_bytes(8, "little") + text + bytes(n_data), np.uint8)
    try:
        found = parse_header(data, "m")
    except CheckpointFormatError:
        return
    assert sum(spec.nbytes for spec in found.specs.values()) == n_data
    ends = [found.offsets[name] + spec.nbytes for name, spec in found.specs.items()]
    assert all(end <= data.size for end in ends)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_as_a_pickle_are_read_or_refused(program: bytes) -> None:
    with contextlib.suppress(MalformedPickleError, UnsafeCheckpointError):
        load(memoryview(program))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 5))
@settings(max_examples=300)
def test_plain_values_come_back_as_python_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    # Protocol 0 writes text in escapes that no checkpoint uses.
    if protocol == 0 and not (data.isascii() and b"\\" not in data and b"\nV" not in data):
        return
    found, end, unknown = load(memoryview(data))
    assert found == value
    assert (end, unknown) == (len(data), ())


def key(number: int) -> bytes:
    return b"\x8a\x0c" + number.to_bytes(12, "little", signed=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<L", len(value)) + value.encode()


HALF = b"\x80\x02}" + text("w") + TENSOR + b"s"
BOMBS = {
    "a memo index of four billion": b"Nr\xff\xff\xff\xff0",
    "a string of four billion bytes": b"X\xff\xff\xff\xff",
    "an integer of two billion bytes": b"\x8b\xff\xff\xff\x7f",
    "a line without end": b"c" + b"a" * 2_000_000,
    "lists in lists": text("x") + b"]" * 200_000 + b"a" * 199_999 + b"s",
    "a deep tuple as a key": b")" + b"\x85" * 200_000 + b"Ns",
    "a deep frozen set as a key": b"(" * 50_000 + b"\x91" * 50_000 + b"Ns",
    "keys of one hash": b"(" + b"".join(key(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u",
    "a list that holds itself": text("x") + b"]q\x05h\x05as",
    "a dictionary that holds itself": b"q\x05" + text("model") + b"h\x05s",
    "a tower of references": text("x")
    + b"]q\x01"
    + b"0](h\x01h\x01eq\x01" * 2000
    + b"0ca\nb\nh\x01\x85Rs",
    "one long list made into many dictionaries": text("x")
    + b"("
    + b"(K\x01Nt" * 30_000
    + b"lq\x01"
    + b"ccollections\nOrderedDict\nh\x01\x85R0" * 30_000
    + b"Ns",
    "one long name over many sections": b"("
    + text("k" * 100_000)
    + b"}("
    + b"".join(text(str(i)) + b"}" for i in range(20_000))
    + b"uu",
    "many classes that hold one long list": text("x")
    + b"("
    + b"K\x01" * 100_000
    + b"lq\x01s("
    + b"".join(text(str(i)) + b"ca\nb\nh\x01\x85R" for i in range(20_000))
    + b"u",
    "one long tuple as the arguments of many tensors": text("x")
    + b"ctorch._utils\n_rebuild_tensor_v2\nq\x01("
    + b"N" * 250_000
    + b"tq\x02("
    + b"h\x01h\x02R" * 3000
    + b"ls",
    "a tower of tuples as the class of a tensor": text("x")
    + b"]q\x010"
    + b"".join(b"(h%ch%ctq%c0" % (i - 1, i - 1, i) for i in range(2, 60))
    + b"ctorch._tensor\n_rebuild_from_type_v2\n"
    + b"(ctorch._utils\n_rebuild_tensor_v2\nh\x3b)NtRs",
    "a tower of tuples as arguments of everything": text("x")
    + b"]q\x010"
    + b"".join(b"(h%ch%ctq%c0" % (i - 1, i - 1, i) for i in range(2, 60))
    + b"(ctorch\nSize\nh\x3bR"
    + b"ctorch._utils\n_rebuild_parameter\nh\x3bR"
    + b"ctorch._utils\n_rebuild_tensor_v3\nh\x3bR"
    + b"ccollections\nOrderedDict\nh\x3bRls",
    "a flood of lists": text("x") + b"(" + b"]" * 9_000_000 + b"ls",
    "a flood of memo entries": text("x") + b"N" + b"\x94" * 9_000_000 + b"s",
    "a flood of names": text("x") + b"(" + b"c\n\n" * 3_000_000 + b"ls",
    "a flood of sets": text("x") + b"(" + b"\x8f" * 9_000_000 + b"ls",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_small_files_made_to_cost_much_do_not(bomb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    data = archive({"m/data.pkl": HALF + bomb + b".", "m/data/0": bytes(24)})
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with contextlib.suppress(CheckpointFormatError, UnsafeCheckpointError):
        assert cp.open(path).raw("w").size == 24
    # Far above what any of them takes, even traced for coverage, and far below what they aim at.
    assert time.process_time() - start < 60
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 128_000_000 + 8 * len(data)
