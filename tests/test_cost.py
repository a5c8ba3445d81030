"""Opening anything takes at most 8 × the bytes of its headers + 64 MB, however it is made up."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stockpot

SOURCE = str(Path(stockpot.__file__).parents[1])
BYTES = 10_000_000

# Text of JSON that takes many times its bytes once it is read.
FLOODS = {
    "lists": "[],",
    "objects": '{"b":1},',
    "objects of other keys": '{"b%d":1},',
    "numbers": "300,",
    "texts": '"ab",',
    "entries": '"%d":1,',
}


def flood(piece: str) -> str:
    """About ten megabytes of a piece, in a list or an object."""
    n = BYTES // len(piece % 1000000 if "%d" in piece else piece)
    inside = "".join(piece % i for i in range(n)) if "%d" in piece else piece * n
    opening, closing = ("{", '"z":1}') if piece.startswith('"%d"') else ("[", "1]")
    return opening + inside + closing


def safetensors(path: Path, header: str, n_data: int = 0) -> Path:
    data = header.encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(n_data))
    return path


def in_a_header(folder: Path, text: str) -> Path:
    return safetensors(folder / "m.safetensors", '{"a":' + text + "}")


def in_an_index(folder: Path, text: str) -> Path:
    model = folder / "model"
    model.mkdir()
    one = '{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    safetensors(model / "m.safetensors", one, 4)
    index = '{"weight_map":{"a":"m.safetensors"},"metadata":' + text + "}"
    (model / "model.safetensors.index.json").write_text(index)
    return model


def in_a_record(folder: Path, text: str) -> Path:
    record = '{"ingredients":' + text + ',"mixing":{},"soup":{}}'
    (folder / "soup.safetensors.stockpot.json").write_text(record)
    return folder / "soup.safetensors"


def in_a_report(folder: Path, text: str) -> Path:
    (folder / "report.json").write_text('{"format":2,"title":' + text + "}")
    return folder


def in_a_run(folder: Path, text: str) -> Path:
    (folder / "run-00.json").write_text('{"version":1,"index":' + text + "}")
    return folder


PLACES: dict[str, Callable[[Path, str], Path]] = {
    "header": in_a_header, "index": in_an_index, "record": in_a_record, "report": in_a_report,
    "run": in_a_run,
}  # fmt: skip


def flax_of(path: Path, item: bytes, n: int) -> None:
    """A list of `n` values that are not arrays."""
    path.write_bytes(b"\x81\xa1w\xdd" + struct.pack(">I", n) + item * n)


def flax_arrays(path: Path) -> None:
    """As many arrays as there is room for, each of no values."""
    array = b"\x93\x91\x00\xa4int8\xc4\x00"
    value = b"\xc7" + bytes([len(array)]) + b"\x01" + array
    n = BYTES // (5 + len(value))
    items = (b"\xce" + struct.pack(">I", i) + value for i in range(n))
    path.write_bytes(b"\xdf" + struct.pack(">I", n) + b"".join(items))


def npz_of(path: Path, n: int, member: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(n):
            archive.writestr(f"{i}.npy", member)


def npz_deflated(path: Path) -> None:
    """A gigabyte in a megabyte."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000,)}\n"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        for _ in range(1000):
            file.write(bytes(1_000_000))


def nemo_of(path: Path, kind: bytes, text: bytes) -> None:
    """An archive whose one file with weights is described by much text."""
    weights = io.BytesIO()
    torch.save({"w": torch.ones(2)}, weights)
    members = (("text", text, kind), ("model_weights.ckpt", weights.getvalue(), b"0"))
    blocks = []
    for name, data, kind in members:
        info = tarfile.TarInfo(name)
        info.size, info.type = len(data), kind
        blocks += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % 512)]
    path.write_bytes(b"".join(blocks) + bytes(1024))


def hdf5_of(path: Path, n: int) -> None:
    import h5py

    with h5py.File(path, "w", libver="latest") as file:  # which describes them in fewer bytes
        for i in range(n):
            file.create_dataset(f"g{i // 300}/{i}", data=np.zeros(1, "f4"))


def adapter(folder: Path) -> None:
    folder.mkdir()
    save_file({"base_model.model.w.lora_A.weight": torch.ones(2, 3)}, folder / ADAPTER)
    config = '{"peft_type":"LORA","r":2,"lora_alpha":2,"target_modules":' + flood("[],") + "}"
    (folder / "adapter_config.json").write_text(config)


def zero(folder: Path) -> None:
    """A rank of DeepSpeed whose file names a flood of parameters."""
    folder.mkdir()
    shapes = {f"layer.{i}": torch.Size((1,)) for i in range(100_000)}
    optimiser = {"zero_stage": 2, "single_partition_of_fp32_groups": [torch.ones(100_000)]}
    torch.save(
        {"optimizer_state_dict": optimiser}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )
    torch.save({"module": {}, "param_shapes": [shapes]}, folder / "mp_rank_00_model_states.pt")


ADAPTER = "adapter_model.safetensors"
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "()," * 20_000
NPY = io.BytesIO()
np.save(NPY, np.zeros(1, "f4"))
RECORDS = b"".join(b"12 %07d=\n" % i for i in range(BYTES // 12))
ARCHIVES: dict[str, Callable[[Path], None]] = {
    "lists.msgpack": lambda path: flax_of(path, b"\x90", BYTES),
    "objects.msgpack": lambda path: flax_of(path, b"\x81\x00\x80", BYTES // 3),
    "arrays.msgpack": flax_arrays,
    "arrays.npz": lambda path: npz_of(path, 30_000, NPY.getvalue()),
    "headers.npz": lambda path: npz_of(
        path, 150, b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + HEADER.encode()[:60_000]
    ),
    "deflated.npz": npz_deflated,
    "records.nemo": lambda path: nemo_of(path, b"x", RECORDS),
    "global.nemo": lambda path: nemo_of(path, b"g", RECORDS),
    "name.nemo": lambda path: nemo_of(path, b"L", b"a" * BYTES),
    "adapter": adapter,
    "zero": zero,
}
if importlib.util.find_spec("h5py"):
    ARCHIVES["arrays.h5"] = lambda path: hdf5_of(path, 30_000)


MEASURE = """
import json, os, resource, sys, time
import stockpot, stockpot.report
import stockpot.formats.hdf5
from stockpot.io.yaml_files import YamlError, read_yaml
from stockpot.recipes.record import SoupRecord
from stockpot.train.sweep.records import read_runs

READ = {"record": SoupRecord.read, "report": stockpot.report.open_report, "run": read_runs,
        "yaml": read_yaml}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

for name, path in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        before, began = peak(), time.process_time()
        try:
            READ.get(name.split()[0], stockpot.open)(path)
        except (stockpot.StockpotError, YamlError):
            pass
        used = time.process_time() - began
        os.write(write, json.dumps([name, [peak() - before, used]]).encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 10_000).decode(), flush=True)
    os.wait()
"""


def test_memory_is_in_proportion(tmp_path: Path) -> None:
    """In processes of their own, which end within the time that is given all of them."""
    cases: dict[str, tuple[Path, int]] = {}
    for place, build in PLACES.items():
        # Records, reports and runs have one reader, which an index shares.
        kinds = FLOODS if place in ("header", "record") else {"lists": FLOODS["lists"]}
        for kind, piece in kinds.items():
            folder = tmp_path / f"{place} {kind}".replace(" ", "-")
            folder.mkdir()
            cases[f"{place} {kind}"] = (build(folder, flood(piece)), BYTES)
    many = "".join(
        f'"layer.{i}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}},'
        for i in range(100_000)
    )
    file = safetensors(tmp_path / "many.safetensors", "{" + many[:-1] + "}", 400_000)
    cases["tensors"] = (file, len(many))
    text = tmp_path / "flood.yaml"
    text.write_text("a: [" + "[]," * 340_000 + "1]")
    cases["yaml lists"] = (text, text.stat().st_size)
    pickled = tmp_path / "dcp"
    pickled.mkdir()
    (pickled / ".metadata").write_bytes(b"\x80\x02(" + b"]" * BYTES + b"l.")
    cases["metadata"] = (pickled, BYTES)
    assert over(cases) == {}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_and_files_of_libraries_cost_no_more(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ARCHIVES[name](path)
    files = [path] if path.is_file() else [*path.iterdir()]
    assert over({name: (path, sum(file.stat().st_size for file in files))}) == {}


def over(cases: Mapping[str, tuple[Path, int]]) -> dict[str, str]:
    """What takes more than it may, of paths and the bytes of their headers."""
    given = json.dumps([[name, os.fspath(path)] for name, (path, _) in cases.items()])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=given, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": SOURCE}, timeout=300,
    )  # fmt: skip
    found: dict[str, tuple[int, float]] = dict(map(json.loads, done.stdout.splitlines()))
    assert found.keys() == cases.keys()
    # Four times what is promised: processors are slower while they are shared, and traced.
    return {
        name: f"{grown / 1e6:.0f} MB and {seconds:.1f} s for {cases[name][1] / 1e6:.0f} MB"
        for name, (grown, seconds) in found.items()
        if grown > 8 * cases[name][1] + 64_000_000 or seconds > 20
    }


@pytest.mark.parametrize("size", [1, 100])
def test_what_people_write_is_not_taken_for_a_flood(size: int, tmp_path: Path) -> None:
    from experiments.fuzz_records import real_records

    from stockpot._records import loads

    for record in real_records().values():
        loads(json.dumps([record] * size))
