"""Throw mutated archives and files of other libraries at their readers.

    python -m experiments.fuzz_archives --cases 1000000 --results archives.jsonl

- `npz`: archives of NumPy, stored and compressed, their headers and directories too;
- `hdf5`: HDF5 files, values in one piece and in compressed chunks (needs h5py);
- `keras`: archives of Keras around such a file (needs h5py);
- `flax`: files of flax, with arrays in chunks and a train state;
- `nemo`: archives of NeMo, the tar and the file of torch.save in it;
- `deepspeed`: a file of a folder of DeepSpeed, ZeRO 0, 2 or 3: its bytes, or the values in it.
"""

from __future__ import annotations

import copy
import functools
import io
import random
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.fuzz_headers import read_all
from experiments.fuzzing import NUMBERS, TEXTS, Target, main, mutated

W = np.arange(12, dtype="<f4").reshape(3, 4)
ZERO_STAGES = (0, 2, 3)


def _file(name: str, make: Callable[[random.Random], bytes]) -> Target:
    """Cases that are files called `name`."""

    def read(data: bytes, folder: Path) -> str:
        (folder / name).write_bytes(data)
        return read_all(folder / name)

    return Target(make, read)


def _mutations(seeds: list[bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: mutated(rng, rng.choice(seeds))


# NumPy


def _npy(header: str, values: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + values


def _npz_case(rng: random.Random) -> bytes:
    """An archive with bytes changed, or one whose header holds what attacks a reader of them."""
    buffer = io.BytesIO()
    save = np.savez_compressed if rng.random() < 0.5 else np.savez
    if rng.random() < 0.5:
        save(buffer, w=W, fortran=np.asfortranarray(W), h=W.astype("<f2"), n=np.int64(3))
        return mutated(rng, buffer.getvalue())
    fields: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (3, 4)}
    for name in fields:
        if rng.random() < 0.4:
            hostile = rng.choice((*NUMBERS, *TEXTS))
            fields[name] = (hostile, 4) if name == "shape" and rng.random() < 0.5 else hostile
    text = repr(fields).replace("inf", "1e999")
    kind = zipfile.ZIP_DEFLATED if save is np.savez_compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("w.npy", _npy(text, W.tobytes()))
    return buffer.getvalue()


# HDF5


def _hdf5_seeds() -> list[bytes]:
    import h5py

    found = []
    for options in ({}, {"chunks": (2, 2), "compression": "gzip"}):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset("layers/dense/vars/0", data=W, **options)
            file.create_dataset("layers/dense/vars/1", data=W[0])
            file.create_dataset("optimizer/vars/0", data=np.float32(1))
            file["alias"] = h5py.SoftLink("/layers")
            file["layers"].attrs["name"] = "stack"
            raw = W[0].astype("<f2").view("V2")
            file.create_dataset("half", data=raw).attrs["dtype"] = "bfloat16"
        found.append(buffer.getvalue())
    return found


def _keras_seeds(inner: list[bytes]) -> list[bytes]:
    found = []
    for data in inner:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", data)
        found.append(buffer.getvalue())
    return found


# flax


def _packed(value: Any) -> bytes:
    """MessagePack of dictionaries, texts, small numbers and arrays, as flax writes it."""
    if isinstance(value, np.ndarray):
        inner = b"\x93" + _packed([*value.shape]) + _packed(value.dtype.name)
        inner += b"\xc6" + struct.pack(">I", value.nbytes) + value.tobytes()
        return b"\xc9" + struct.pack(">IB", len(inner), 1) + inner
    if isinstance(value, dict):
        items = b"".join(_packed(k) + _packed(v) for k, v in value.items())
        return bytes([0x80 | len(value)]) + items
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(_packed, value))
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    return b"\xc3" if value is True else bytes([value])


def _flax_seeds() -> list[bytes]:
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 3, "1": 4},
        "chunks": {"0": W.reshape(-1)[:7], "1": W.reshape(-1)[7:]},
    }
    state = {"step": 3, "params": {"dense": {"kernel": W}}, "opt_state": {"0": {"mu": W}}}
    return [_packed(state), _packed({"kernel": chunked, "bias": W[0]}), _packed({"w": [W, W]})]


# NeMo


def _nemo_seed() -> bytes:
    weights, buffer = io.BytesIO(), io.BytesIO()
    torch.save({"encoder.w": torch.ones(3, 4), "b": torch.ones(2).half()}, weights)
    members = {"model_config.yaml": b"a: 1\n", "model_weights.ckpt": weights.getvalue()}
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            info.pax_headers = {"mtime": "1.5", "comment": "ü"}
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# DeepSpeed


def _zero_values(stage: int) -> dict[str, Any]:
    """The values in the files of a checkpoint of two ranks, by the names of the files."""
    shapes = {"w": torch.Size((3, 4)), "b": torch.Size((5,))}
    field = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    n_each = 6 + 3 if stage == 3 else 9
    files: dict[str, Any] = {}
    for rank in range(2):
        state = {"zero_stage": stage, "partition_count": 2, field: [torch.ones(n_each)]}
        if stage:
            name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            files[name] = {"optimizer_state_dict": state}
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        module = {n: torch.empty(0 if stage == 3 else s).half() for n, s in shapes.items()}
        files[f"{prefix}mp_rank_00_model_states.pt"] = {
            "module": {**module, "mean": torch.ones(2), "head": module["w"]},
            "buffer_names": ["mean"],
            "param_shapes": [shapes],
            "frozen_param_shapes": {"f": torch.Size((2,))},
            "frozen_param_fragments": {"f": torch.ones(1 if stage == 3 else 2)},
            "shared_params": {"head": "w"},
        }
    return files


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _changed(rng: random.Random, value: Any) -> Any:
    """`value` with a few of its values replaced or removed, or by another of them."""
    whole = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = [*_places(whole)]
        if not places:
            break
        parent, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name])
        elif action == 2:
            parent[key] = torch.ones(rng.choice((0, 1, 3, 9, 40)))
        else:
            hostile = copy.copy(rng.choice((*NUMBERS, *TEXTS[:3], *TEXTS[4:])))
            parent[key] = (hostile, 4) if rng.random() < 0.3 else hostile
    return whole


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in dictionaries and lists; small, and none holds itself."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [p for key in keys for p in _places(value[key])]


def _zero() -> Target:
    stages = [_zero_values(stage) for stage in ZERO_STAGES]
    files = [{name: _saved(value) for name, value in one.items()} for one in stages]

    def make(rng: random.Random) -> bytes:
        """The stage, the number of the file that is spoiled, and what it is then."""
        stage = rng.randrange(len(ZERO_STAGES))
        number = rng.randrange(len(files[stage]))
        name = sorted(files[stage])[number]
        if rng.random() < 0.4:
            spoiled = mutated(rng, files[stage][name], 1200)
        else:
            spoiled = _saved(_changed(rng, stages[stage][name]))
        return bytes([stage, number]) + spoiled

    def read(data: bytes, folder: Path) -> str:
        stage, number = (*data[:2], 0, 0)[:2]
        given = files[stage % len(files)]
        model = folder / f"zero{stage % len(files)}"
        model.mkdir(exist_ok=True)
        spoiled = sorted(given)[number % len(given)]
        for name, content in given.items():
            (model / name).write_bytes(data[2:] if name == spoiled else content)
        return read_all(model)

    return Target(make, read)


@functools.cache
def targets() -> Mapping[str, Target]:
    """The kinds of cases, by name."""
    found = {
        "npz": _file("a.npz", _npz_case),
        "flax": _file("a.msgpack", _mutations(_flax_seeds())),
        "nemo": _file("a.nemo", _mutations([_nemo_seed()])),
        "deepspeed": _zero(),
    }
    try:
        hdf5 = _hdf5_seeds()
    except ImportError:
        return found
    found["hdf5"] = _file("a.weights.h5", _mutations(hdf5))
    found["keras"] = _file("a.keras", _mutations(_keras_seeds(hdf5)))
    return found


if __name__ == "__main__":
    sys.exit(main(targets, __doc__ or ""))
