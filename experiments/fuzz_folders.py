"""Throw mutated indexes, folders of distributed training and bitmasks at their readers.

    python experiments/fuzz_folders.py --cases 1000000 --results folders.jsonl

- `index`: `model.safetensors.index.json` of a folder with two shards;
- `distributed`: `.metadata` and the chunks of a folder of torch.distributed.checkpoint;
- `bitmask`: headers and contents of files in the sparse-bitmask layout.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import random
import struct
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from experiments.fuzz_headers import read_all
from experiments.fuzzing import Target, main, mutated, mutated_json


def _file(tensors: Mapping[str, list[int]]) -> bytes:
    """A safetensors file of ones."""
    at, header = 0, {}
    for name, shape in tensors.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.ones(at // 4, "<f4").tobytes()


SHARDS = {
    "model-00001-of-00002.safetensors": {"a.weight": [2, 3], "a.bias": [2]},
    "model-00002-of-00002.safetensors": {"b.weight": [3, 2]},
}
INDEX = {
    "metadata": {"total_size": 56, "format": "pt"},
    "weight_map": {name: file for file, names in SHARDS.items() for name in names},
}


def _index(data: bytes, folder: Path) -> str:
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        for name, tensors in SHARDS.items():
            (model / name).write_bytes(_file(tensors))
    (model / "model.safetensors.index.json").write_bytes(data)
    return read_all(model)


def _distributed_seed() -> dict[str, bytes]:
    """The files of a folder that torch wrote."""
    import torch
    import torch.distributed.checkpoint as dcp

    state = {
        "model": {"w": torch.ones(3, 4), "s": torch.tensor(2.0), "h": torch.ones(5).half()},
        "epoch": 3,
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch 2.4 has no such argument.
        alone = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}
        dcp.save(state, checkpoint_id=folder, **alone)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _distributed(seed: Mapping[str, bytes]) -> Target:
    names = sorted(seed)

    def make(rng: random.Random) -> bytes:
        """The number of the file that is spoiled, and what it is then."""
        number = names.index(".metadata") if rng.random() < 0.8 else rng.randrange(len(names))
        return bytes([number]) + mutated(rng, seed[names[number]])

    def read(data: bytes, folder: Path) -> str:
        model = folder / "dcp"
        model.mkdir(exist_ok=True)
        spoiled = names[data[0] % len(names)] if data else names[0]
        for name, content in seed.items():
            (model / name).write_bytes(data[1:] if name == spoiled else content)
        return read_all(model)

    return Target(make, read)


def _bitmask_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder, "dense.safetensors"), Path(folder, "small.safetensors")
        values = np.where(np.arange(2400) % 5 == 0, np.arange(2400), 0).astype("<f4")
        header = {
            "a.weight": {"dtype": "F32", "shape": [40, 60], "data_offsets": [0, values.nbytes]}
        }
        text = json.dumps(header).encode()
        dense.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())
        from stockpot.cli import main as stockpot

        with contextlib.redirect_stdout(io.StringIO()):
            assert stockpot(["compress", str(dense), "-o", str(small)]) == 0
        return small.read_bytes()


def _bitmask(seed: bytes) -> Target:
    length = 8 + int.from_bytes(seed[:8], "little")
    plain, body = seed[8:length].decode(), seed[length:]

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutated(rng, seed)
        text = mutated_json(rng, plain) if rng.random() < 0.7 else plain.encode()
        data = mutated(rng, body) if rng.random() < 0.5 else body
        return struct.pack("<Q", len(text)) + text + data

    def read(data: bytes, folder: Path) -> str:
        path = folder / "small.safetensors"
        path.write_bytes(data)
        return read_all(path)

    return Target(make, read)


@functools.cache
def targets() -> Mapping[str, Target]:
    """The kinds of cases, by name."""
    index = json.dumps(INDEX)
    return {
        "index": Target(lambda rng: mutated_json(rng, index), _index),
        "distributed": _distributed(_distributed_seed()),
        "bitmask": _bitmask(_bitmask_seed()),
    }


if __name__ == "__main__":
    sys.exit(main(targets, __doc__ or ""))
