"""A read-only format of another package goes through open, inspect, average and verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import stockpot
from stockpot.errors import CheckpointError
from stockpot.formats import table

SOURCE = Path(__file__).parents[2] / "src"
TOY = '''
"""Weights as text: a line for each tensor, its name and its float32 values."""

import numpy as np
from stockpot.formats import Checkpoint, DType, Format, TensorSpec
from stockpot.io.storage import MappedFile


class ToyFile(Checkpoint):
    format = "toy"
    computed = True

    def __init__(self, path):
        file = MappedFile(path)
        lines = file.bytes().tobytes().decode().splitlines()[1:]
        self._arrays = {n: np.float32(v) for n, *v in (line.split() for line in lines)}
        specs = {n: TensorSpec(n, DType.F32, v.shape) for n, v in self._arrays.items()}
        super().__init__(str(path), specs, files=(file.id,))

    def raw(self, name):
        self[name]
        raw = self._arrays[name].view(np.uint8)
        raw.flags.writeable = False
        return raw


class ToyFormat(Format):
    name = "toy"
    summary = "a text file of weights"
    suffixes = (".toy",)
    remedy = "write .safetensors"

    def recognises(self, path, head):
        return head.startswith(b"toy\\n")

    def open(self, path, *, key=None):
        return ToyFile(path)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package that names the format in its entry points."""
    folder = tmp_path / "site"
    about = folder / "toy_weights-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "toy_weights.py").write_text(TOY)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[stockpot.formats]\ntoy = toy_weights:ToyFormat\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "one.toy").write_text("toy\nw 1 2\nb 0.5\n")
    (folder / "two.toy").write_text("toy\nw 3 6\nb 1.5\n")
    return folder


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_registered", [])


def command(package: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCE), str(package)])
    return subprocess.run(
        [sys.executable, "-m", "stockpot", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "STOCKPOT_CACHE": str(package.parent / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_package_brings_its_format_to_the_command_line(
    package: Path, runs: Path, tmp_path: Path
) -> None:
    shown = command(package, "inspect", runs / "one.toy", runs / "two.toy", "--json")
    assert shown.returncode == 0, shown.stderr
    inspected = json.loads(shown.stdout)
    assert [one["format"] for one in inspected["checkpoints"]] == ["toy", "toy"]

    out = tmp_path / "soup.safetensors"
    averaged = command(package, "average", runs, "-o", out, "--json")
    assert averaged.returncode == 0, averaged.stderr
    soup = load_file(out)
    assert (soup["w"].tolist(), soup["b"].tolist()) == ([2.0, 4.0], [1.0])

    verified = command(package, "verify", out, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verified"] is True


def test_a_format_that_is_read_only_says_so_when_it_shall_be_written(
    package: Path, runs: Path, tmp_path: Path
) -> None:
    done = command(package, "average", runs, "-o", tmp_path / "soup.toy")
    assert done.returncode == 1
    assert "is read and not written; write .safetensors" in " ".join(done.stderr.split())
    assert not (tmp_path / "soup.toy").exists()


def test_without_its_package_the_format_is_unknown(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint that is known.*\.safetensors"):
        stockpot.open(runs / "one.toy")


@pytest.mark.usefixtures("own_table")
def test_a_registered_format_conforms_and_is_written_about(package: Path, runs: Path) -> None:
    scope: dict[str, type[stockpot.formats.Format]] = {}
    exec(TOY, scope)
    stockpot.formats.register(scope["ToyFormat"]())
    opened = stockpot.open(runs / "one.toy")
    assert (opened.format, opened["w"].shape) == ("toy", (2,))
    assert opened.read("w").tolist() == [1.0, 2.0]
    assert [Path(path).name for path in stockpot.expand_paths([runs])] == ["one.toy", "two.toy"]
    with pytest.raises(ValueError, match="known by 'toy' already"):
        stockpot.formats.register(scope["ToyFormat"]())


class OtherSafetensors(stockpot.formats.Format):
    name = "mine"
    suffixes = (".safetensors",)

    def recognises(self, path: Path, head: bytes) -> bool:
        return True

    def open(self, path: Path, *, key: str | None = None) -> stockpot.Checkpoint:
        raise AssertionError("never asked")


@pytest.mark.usefixtures("own_table")
def test_no_format_of_the_table_can_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'safetensors' is known by '\.safetensors' already"):
        stockpot.formats.register(OtherSafetensors())


@pytest.mark.parametrize("one", table.FORMATS, ids=lambda one: one.name)
def test_every_entry_says_what_it_is(one: stockpot.formats.Format) -> None:
    assert one.name
    assert one.summary
    assert one.reads or one.remedy
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in one.suffixes)


def test_no_two_entries_share_a_suffix() -> None:
    suffixes = [suffix for one in table.FORMATS for suffix in one.suffixes]
    assert len(suffixes) == len(set(suffixes))


def test_what_is_not_read_names_the_way_to_convert_it(tmp_path: Path) -> None:
    for name, content, remedy in (
        ("m.gguf", b"GGUF\x03", "before you export"),
        ("named.pt", b"GGUF\x03", "before you export"),
        ("m.onnx", b"\x08\x07", "export the result"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=remedy):
            stockpot.open(tmp_path / name)
