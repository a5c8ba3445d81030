"""Opening anything takes at most 8 × the bytes of its headers + 64 MB, however it is made up."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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

MEASURE = """
import json, os, resource, sys
import stockpot, stockpot.report
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
        before = peak()
        try:
            READ.get(name.split()[0], stockpot.open)(path)
        except (stockpot.StockpotError, YamlError):
            pass
        os.write(write, json.dumps([name, peak() - before]).encode())
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
    given = json.dumps([[name, os.fspath(path)] for name, (path, _) in cases.items()])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=given, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": SOURCE}, timeout=300,
    )  # fmt: skip
    grown = dict(map(json.loads, done.stdout.splitlines()))
    assert grown.keys() == cases.keys()
    over = {
        name: f"{grown[name] / 1e6:.0f} MB of {size / 1e6:.0f} MB"
        for name, (_, size) in cases.items()
        if grown[name] > 8 * size + 64_000_000
    }
    assert over == {}


@pytest.mark.parametrize("size", [1, 100])
def test_what_people_write_is_not_taken_for_a_flood(size: int, tmp_path: Path) -> None:
    from experiments.fuzz_records import real_records

    from stockpot._records import loads

    for record in real_records().values():
        loads(json.dumps([record] * size))
