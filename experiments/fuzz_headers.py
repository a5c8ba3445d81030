"""Throw random and mutated headers and pickles at the readers of weights.

    python experiments/fuzz_headers.py --cases 1000000 --results headers.jsonl

Each case is a small file, opened as a user would; it must give a checkpoint whose tensors all lie
in the file, or an error (`experiments/fuzzing.py`):

- `header`: a safetensors header whose fields are drawn from values that attack a reader;
- `bytes`: a valid safetensors file with bytes flipped, inserted, removed, doubled or cut off;
- `torch`: the same for files of torch.save, new and old format (structure and archive directory);
- `opcodes`: a stream of pickle opcodes with random arguments, in a valid archive or alone.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import pickle
import random
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.fuzzing import NUMBERS, Target, main, mutated

import stockpot.formats as cp

# Safetensors headers.

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F6_E2M3",
    "F4",
    "I64",
    "U8",
    "BOOL",
    "C64",
    "F33",
)
NAMES = ("w", "a.b", "module.w", "_orig_mod.w", "__metadata__", "", "\0", "ü", "\ud800", "x" * 300)


def header_case(rng: random.Random) -> bytes:
    """A header of valid and hostile fields, and data that may or may not fit."""
    fields: list[tuple[str, Any]] = []
    at = 0
    for index in range(rng.randrange(5)):
        name = rng.choice(NAMES) if rng.random() < 0.3 else f"layer.{index}"
        dtype, shape = rng.choice(DTYPES), [rng.randrange(4) for _ in range(rng.randrange(4))]
        bits = 8 * {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "C64": 8}.get(dtype, 1)
        size = bits // 8
        for n in shape:
            size *= n
        info: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
        if rng.random() < 0.3:
            spoil(rng, info)
        fields.append((name, info if rng.random() < 0.97 else rng.choice(NUMBERS)))
    if rng.random() < 0.2:
        fields.append(("__metadata__", {"a": "b"} if rng.random() < 0.5 else rng.choice(NUMBERS)))
    rng.shuffle(fields)
    text = "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in fields) + "}"
    if rng.random() < 0.02:
        text = '{"a":' + "[" * rng.choice((10, 1000, 100_000)) + text
    data = text.encode() + b" " * rng.randrange(3)
    length = len(data) if rng.random() < 0.95 else abs(rng.choice((-1, 0, 7, len(data) + 1, 2**63)))
    extra = 0 if rng.random() < 0.8 else rng.randrange(9)
    return length.to_bytes(8, "little") + data + bytes(min(at, 5000) + extra)


def spoil(rng: random.Random, info: dict[str, Any]) -> None:
    """Replace, remove or add something in the description of a tensor."""
    place = rng.choice(("dtype", "shape", "data_offsets"))
    action = rng.randrange(4)
    if action == 0:
        info[place] = rng.choice(NUMBERS)
    elif action == 1:
        del info[place]
    elif action == 2 and isinstance(info[place], list):
        info[place] = [*info[place], rng.choice(NUMBERS)] * rng.choice((1, 1, 2, 70))
    elif isinstance(info[place], list) and info[place]:
        info[place][rng.randrange(len(info[place]))] = rng.choice(NUMBERS)


# Seeds of mutations.


def safetensors_seeds() -> list[bytes]:
    """A few valid files."""
    seeds = []
    for k in (1, 3):
        info = {
            f"module.layer.{i}.weight": {
                "dtype": "F16", "shape": [2, 3], "data_offsets": [12 * i, 12 * i + 12],
            }
            for i in range(k)
        }  # fmt: skip
        text = json.dumps({"__metadata__": {"format": "pt"}, **info}).encode()
        seeds.append(len(text).to_bytes(8, "little") + text + bytes(12 * k))
    return seeds


def torch_seeds() -> list[tuple[bytes, int]]:
    """Files of torch.save, and how many of their bytes are worth mutating."""
    import torch

    layer = torch.nn.Linear(3, 2)
    tied = torch.ones(2, 3)
    values: list[Any] = [
        layer.state_dict(),
        {"state_dict": layer.state_dict(), "args": argparse.Namespace(a=1, b=Path("x"))},
        {"a": tied, "b": tied, "t": tied.T, "e": tied[0, :1].expand(9)},
        {"p": torch.nn.Parameter(tied), "i": torch.arange(3), "f8": tied.to(torch.float8_e5m2)},
    ]
    seeds = []
    for value in values:
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=new)
            data = buffer.getvalue()
            if new:
                seeds.append((data, len(data)))
                seeds.append((data, data.index(b"PK\x03\x04", 4)))
            else:
                seeds.append((data, len(data) - 40))
    return seeds


# Pickles.

GLOBALS = (
    b"collections\nOrderedDict\n", b"torch._utils\n_rebuild_tensor_v2\n", b"torch\nFloatStorage\n",
    b"torch._utils\n_rebuild_tensor_v3\n", b"torch._utils\n_rebuild_parameter\n", b"torch\nSize\n",
    b"torch._tensor\n_rebuild_from_type_v2\n", b"torch\nfloat32\n", b"torch\nTensor\n",
    b"torch.storage\nUntypedStorage\n", b"posix\nsystem\n", b"builtins\neval\n", b"a.b\nC\n",
    b"builtins\ngetattr\n", b"collections\ndefaultdict\n", b"no newline",
)  # fmt: skip
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
)
LONGS = (0, 1, 3, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


LINES = (b"1", b"01", b"-7L", b"1e999", b"'a'", b"", b"9" * 5000, b"\xff")
PUSHES = b"()NKMJX]}\x88\x89\x8cUcqhKX"
OTHERS = (
    b".(0122IGLSTVBCabdelstuQPRopqrgij\x80\x81\x82\x83\x84\x85\x86\x87\x8a\x8b\x8d\x8e\x8f"
    b"\x90\x91\x92\x93\x94\x95\x96\x97\x98F"
)
LONG_RUNS = (b"(", b"]", b"}", b")\x85", b"K\x01\x85", b"2", b"]q\x01h\x01")


def opcode(rng: random.Random) -> bytes:
    """One opcode with an argument that may or may not fit."""
    code = rng.choice(PUSHES if rng.random() < 0.6 else OTHERS)
    one = bytes([code])
    if code == ord("c"):
        return one + rng.choice(GLOBALS)
    if code in b"KCUqh\x8c\x8a\x82\x80":
        n = rng.randrange(6)
        return one + bytes([n]) + (rng.randbytes(n) if code not in b"Kqh\x82\x80" else b"")
    if code in b"JrjTXB\x8b\x84":
        n = rng.randrange(5) if rng.random() < 0.8 else rng.choice(LONGS)
        return one + struct.pack("<L", n) + (b"abcde"[:n] if n < 6 and code not in b"Jrj" else b"")
    if code in b"\x8d\x8e\x96\x95G":
        n = rng.choice((0, 1, 5, 2**63, 2**64 - 1))
        return one + struct.pack("<Q", n) + b"abcde"[: min(n, 5)]
    if code in b"ILFSVPgp":
        return one + rng.choice(LINES) + b"\n"
    if code in b"M\x83":
        return one + rng.randbytes(2)
    return one


def opcodes_case(rng: random.Random) -> bytes:
    """A random program, in an archive, as an old file, or alone."""
    pieces = [b"\x80\x02"]
    if rng.random() < 0.5:
        pieces.append(b"}X\x01\x00\x00\x00w" + TENSOR + b"s")
    n = rng.randrange(1, 40)
    pieces += [TENSOR if rng.random() < 0.05 else opcode(rng) for _ in range(n)]
    if rng.random() < 0.02:
        pieces.append(rng.choice(LONG_RUNS) * 20_000)
    if rng.random() < 0.7:
        pieces.append(b".")
    program = b"".join(pieces)
    if rng.random() < 0.7:
        return archive({"m/data.pkl": program, "m/data/0": bytes(24), "m/byteorder": b"little"})
    if rng.random() < 0.5:
        before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        heads = b"".join(pickle.dumps(value, 2) for value in before)
        return heads + program + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + bytes(24)
    return program


def archive(members: dict[str, bytes]) -> bytes:
    """A zip archive that stores `members`; zipfile would take most of the time."""
    body, table = b"", b""
    for name, data in members.items():
        title = name.encode()
        common = struct.pack(
            "<5H3L2H", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(title), 0
        )
        table += (
            b"PK\x01\x02\x14\x00" + common + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + title
        )
        body += b"PK\x03\x04" + common + title + data
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), len(table),
                      len(body), 0)  # fmt: skip
    return body + table + end


# The run.


@functools.cache
def targets() -> Mapping[str, Target]:
    """The kinds of cases, by name."""
    plain, torches = safetensors_seeds(), torch_seeds()

    def torch_case(rng: random.Random) -> bytes:
        data, limit = rng.choice(torches)
        return mutated(rng, data, limit)

    makers: dict[str, Callable[[random.Random], bytes]] = {
        "header": header_case,
        "bytes": lambda rng: mutated(rng, rng.choice(plain)),
        "torch": torch_case,
        "opcodes": opcodes_case,
    }
    return {name: Target(make, read) for name, make in makers.items()}


def read(data: bytes, folder: Path) -> str:
    """Open `data` as a file and look at every tensor."""
    (folder / "m.pt").write_bytes(data)
    return read_all(folder / "m.pt")


def read_all(path: Path) -> str:
    """Open a checkpoint and look at every tensor."""
    checkpoint = cp.open(path)
    for name, spec in checkpoint.items():
        size = checkpoint.raw(name).size
        if size != spec.nbytes:
            raise AssertionError(f"{name!r} has {size} bytes, not {spec.nbytes}")
    return "valid"


if __name__ == "__main__":
    sys.exit(main(targets, __doc__ or ""))
