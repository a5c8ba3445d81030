"""`stockpot trajectory`: one call of `Trajectory.cook`, shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.tasks import start_weights


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    (tmp_path / "task.py").write_text(
        "from tests.train.tasks import TinyTask\ndef task(): return TinyTask()\n"
    )
    paths = []
    for step in range(3):
        values = start_weights(step)
        save_file(values, tmp_path / f"step-{step}.safetensors")
        paths.append(tmp_path / f"step-{step}.safetensors")
    return [
        *paths, "--task", f"{tmp_path / 'task.py'}:task", "--cache", tmp_path / "cache",
        "-o", tmp_path / "best.safetensors", "--device", "cpu",
    ]  # fmt: skip


def test_it_saves_the_best_window_and_shows_the_others(run, given, tmp_path: Path) -> None:
    result = run("trajectory", *given, "--json")
    assert result.code == 0, result.err
    found = result.json
    best = max(point["score"] for point in found["curve"])
    window = {key: found["window"][key] for key in ("kind", "start", "count")}
    chosen = [p for p in found["curve"] if {k: p[k] for k in window} == window]
    assert chosen[0]["score"] == best
    assert set(found["scores"]) == {"val", "test"}
    saved = load_file(tmp_path / "best.safetensors")
    expected = sum(
        c * load_file(path)["head.weight"].double() for path, c in found["coefficients"].items()
    )
    assert torch.allclose(saved["head.weight"].double(), expected, atol=1e-6)
    again = run("trajectory", *given, "--force", "--decays", "", "--starts", "0,1")
    assert again.code == 0
    heads = [line.split() for line in again.out.splitlines()]
    assert ["window", "start", "stride", "count", "held-out"] in heads


def test_wrong_numbers_are_wrong_usage(run, given) -> None:
    assert run("trajectory", *given, "--starts", "0.5").code == 2
    result = run("trajectory", *given, "--starts", "7", "--json")
    assert result.code == 1
    assert "start 7 (there are 3 checkpoints)" in result.json["error"]["message"]
