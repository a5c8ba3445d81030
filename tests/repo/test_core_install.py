"""What `pip install stockpot` alone can do: a fresh environment without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import stockpot

ROOT = Path(__file__).parents[2]
LIMIT_MB = 60
"""Of the core, beside NumPy and what every environment has."""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the core alone."""
    folder = tmp_path_factory.mktemp("core")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--quiet", ROOT], check=True, cwd=folder)
    return python


@pytest.fixture
def run(core: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a command of the core in a folder with three checkpoints; its JSON."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(32, 32)).astype(np.float32)
    for i in range(3):
        weight = start + 0.01 * rng.normal(size=start.shape).astype(np.float32)
        save_file({"layer.weight": weight}, tmp_path / f"{i}.safetensors")
    pruned = np.where(np.abs(start) > 1, start, 0)
    save_file({"layer.weight": pruned}, tmp_path / "pruned.safetensors")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*words: str, code: int = 0) -> Any:
        done = subprocess.run(
            [core, "-m", "stockpot", *words, "--json"],
            cwd=tmp_path, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    return call


def test_the_core_is_light(core: Path) -> None:
    packages = next((core.parents[1] / "lib").glob("python*")) / "site-packages"
    apart = (
        "numpy",
        "pip",
        "setuptools",
        "pkg_resources",
        "_distutils_hack",
        "distutils-precedence",
    )
    size = sum(
        file.stat().st_size
        for part in packages.iterdir()
        if not part.name.startswith(apart)
        for file in ([part] if part.is_file() else part.rglob("*"))
        if file.is_file()
    )
    assert size < LIMIT_MB * 1e6
    assert not (packages / "torch").exists()


def test_checkpoints_are_inspected_averaged_interpolated_and_verified(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    files = [f"{i}.safetensors" for i in range(3)]
    assert run("inspect", *files)["compatible"] is True
    run("average", *files, "-o", "soup.safetensors")
    run("interpolate", files[0], files[1], "--alpha", "0.25", "-o", "mix.safetensors")
    for output in ("soup.safetensors", "mix.safetensors"):
        assert run("verify", output)["verified"] is True
    first, second = (load_file(tmp_path / file)["layer.weight"] for file in files[:2])
    mixed = load_file(tmp_path / "mix.safetensors")["layer.weight"]
    expected = 0.75 * first.astype(np.float64) + 0.25 * second.astype(np.float64)
    assert np.array_equal(mixed, expected.astype(np.float32))


def test_a_pruned_checkpoint_is_compressed(run: Callable[..., Any], tmp_path: Path) -> None:
    run("compress", "pruned.safetensors", "-o", "small.safetensors")
    small, dense = (tmp_path / f"{name}.safetensors" for name in ("small", "pruned"))
    assert small.stat().st_size < dense.stat().st_size


def test_a_card_is_made_of_what_was_scored_elsewhere(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import TensorDataset

    from stockpot.evaluate import Split
    from stockpot.tasks import ClassificationTask

    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    task = ClassificationTask(
        build=lambda: torch.nn.Sequential(OrderedDict(layer=torch.nn.Linear(32, 32, bias=False))),
        splits={
            role: Split(TensorDataset(x + shift, torch.arange(50) % 32), role=role)
            for shift, role in enumerate(("held-out", "test"))
        },
    )
    soup = stockpot.greedy([tmp_path / f"{i}.safetensors" for i in range(3)], task=task)
    soup.save(tmp_path / "scored.safetensors")
    run("report", "scored.safetensors", "-o", "card.md")
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert f"{100 * soup.scores['test'].value:.1f} %" in card
    error = run("report", "scored.safetensors", "-o", "page.html", code=1)["error"]
    assert "pip install 'stockpot[report]'" in error["message"]  # its figures are drawn


def test_what_needs_torch_says_which_extra_brings_it(run: Callable[..., Any]) -> None:
    error = run(
        "greedy", "0.safetensors", "1.safetensors", "--task", "handwriting",
        "-o", "greedy.safetensors", code=1,
    )["error"]  # fmt: skip
    assert error["type"] == "OptionalDependencyError"
    assert "pip install 'stockpot[" in error["message"]
