"""The experiment on angles by what varied, on tiny data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.experiments.standins import TINY

from experiments import angles


def test_only_what_a_sweep_is_named_after_varies() -> None:
    by = angles.sweeps(2)
    assert {len(runs) for runs in by.values()} == {5}
    assert len({seed for _, seed in by["seed"]}) == 5
    assert {config for config, _ in by["seed"]} == {angles.CONFIG}
    for kind, fields in (
        ("learning rate", ("lr",)),
        ("augmentation", ("shift_pixels", "rotate_degrees")),
    ):
        assert len({seed for _, seed in by[kind]}) == 1
        same = {name: getattr(angles.CONFIG, name) for name in fields}
        assert {replace(config, **same) for config, _ in by[kind]} == {angles.CONFIG}
        assert len({config for config, _ in by[kind]}) == 5


def test_angles_are_those_of_the_moves_and_a_second_call_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(angles, "CONFIG", replace(angles.CONFIG, epochs=1, score_every=1))
    text = angles.main(["--out", str(tmp_path), "--seeds", "3"], lab=TINY)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == [
        "| seed", "| learning rate", "| augmentation", "| all",
    ]  # fmt: skip
    found = json.loads((tmp_path / "angles.json").read_text())["3"]
    place = tmp_path / "seed-3"
    base, *runs = (
        load_file(place / f"{name}.safetensors") for name in ("base", "seed-0", "seed-1")
    )
    a, b = (np.concatenate([(run[n] - base[n]).ravel() for n in sorted(base)]) for run in runs)
    expected = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    pair = next(p for p in found["seed"] if (p["i"], p["j"]) == (0, 1))
    assert pair["degrees"] == pytest.approx(expected, abs=0.01)
    monkeypatch.setattr(angles, "make_base", None)
    assert angles.main(["--out", str(tmp_path), "--seeds", "3"], lab=TINY) == text
