"""Thousands of cases for every parser; `experiments/fuzz_*.py` run millions."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from experiments.fuzzing import MAX_GROWTH_BYTES, Target, main, run

from experiments import fuzz_archives, fuzz_folders, fuzz_headers, fuzz_records

HDF5 = ("hdf5", "keras") if importlib.util.find_spec("h5py") else ()
TARGETS = {
    **dict.fromkeys(("header", "bytes", "torch", "opcodes"), fuzz_headers),
    **dict.fromkeys(("index", "distributed", "bitmask"), fuzz_folders),
    **dict.fromkeys(("npz", "flax", "nemo", "deepspeed", *HDF5), fuzz_archives),
    **dict.fromkeys(("record", "report", "run", "journal", "task", "space", "json"), fuzz_records),
}


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_read_is_a_value_or_an_error_of_stockpot(name: str) -> None:
    tally = run(TARGETS[name].targets()[name], 1000, f"test {name}")
    assert tally.failures == []
    assert tally.outcomes.total() == 1000
    assert len(tally.outcomes) > 1  # some cases are refused, and some are read
    assert tally.growth_bytes < 2 * MAX_GROWTH_BYTES


def test_every_target_is_tried() -> None:
    every = {name for module in set(TARGETS.values()) for name in module.targets()}
    assert every == set(TARGETS)


def _harm(data: bytes, folder: Path) -> str:
    if data == b"error":
        raise KeyError("not of the family")
    if data == b"waits":
        time.sleep(60)
    while data == b"slow":
        pass
    return "read"


def _targets() -> dict[str, Target]:
    return {
        name: Target(lambda rng, name=name: name.encode(), _harm)  # type: ignore[misc]
        for name in ("error", "fine")
    }


def test_harm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(_targets()["fine"], 5, "0").failures == []
    found = run(_targets()["error"], 5, "0")
    assert len(found.failures) == 5
    assert "KeyError" in found.failures[0]
    monkeypatch.setattr("experiments.fuzzing.SECONDS_PER_CASE", 0.1)
    for kind in (b"slow", b"waits"):
        (slow,) = run(Target(lambda rng, kind=kind: kind, _harm), 1, "0").failures
        assert "more than 0.1 s" in slow


def test_a_run_goes_on_behind_the_parts_that_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    given = ["fine", "--cases", "8000", "--results", str(results)]
    assert main(_targets, "About.", given) == 0
    parts = results.read_text().splitlines()
    assert len(parts) == 2
    assert main(_targets, "About.", given) == 0
    assert results.read_text().splitlines() == parts
    assert capsys.readouterr().out.count("fine: 8,000 cases") == 2
    assert main(_targets, "About.", ["error", "--cases", "3"]) == 1
