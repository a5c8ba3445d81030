"""Installing stockpot changes nothing that people have (docs/installation.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# As people have it: what a cluster pins, and the oldest that a pinned NumPy 1 allows.
HAVE = {
    "torch": "2.9.1", "numpy": "1.26.4", "transformers": "4.57.0", "scipy": "1.11.4",
    "scikit-learn": "1.3.2", "matplotlib": "3.8.4", "rich": "13.7.0", "accelerate": "1.6.0",
    "safetensors": "0.4.5", "torchmetrics": "1.3.2", "huggingface-hub": "0.34.0",
}  # fmt: skip


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [one for name in extras if name not in ("dev", "docs", "test") for one in extras[name]]
    return [Requirement(one) for one in (*project["dependencies"], *users)]


@pytest.mark.parametrize("name", HAVE)
def test_what_people_have_is_enough(name: str) -> None:
    ours = [one for one in _requirements() if one.name == name]
    assert all(one.specifier.contains(HAVE[name]) for one in ours), ours


def test_nothing_is_held_back() -> None:
    """An upper bound keeps people from what they need, and protects from nothing that is known."""
    capped = [
        str(one)
        for one in _requirements()
        for spec in one.specifier
        if spec.operator not in (">=", "!=")
    ]
    assert not capped
