"""A bucket on the loopback, and models in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.object_store import Server, serving
from safetensors.numpy import save_file

from stockpot.io import objects


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A bucket on this machine, where the environment leads; `models` are in it."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path / "store") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        objects._handle.cache_clear()
        yield server


def weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(0)
    shapes = {"big": (3000, 900), **{f"layer.{i}.b": (7,) for i in range(100)}, "none": (0, 3)}
    return {
        name: (shared.normal(size=shape) + 0.01 * random.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model folders on the disk."""
    made = [tmp_path_factory.mktemp("models") / f"m{i}" for i in range(3)]
    for seed, folder in enumerate(made):
        folder.mkdir()
        save_file(weights(seed), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "toy"}')
    return made


@pytest.fixture
def models(folders: list[Path], store: Server) -> list[Path]:
    """The folders, which are also in the bucket `b` under their names."""
    for folder in folders:
        store.put_folder(f"b/{folder.name}", folder)
    return folders
