from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks.clip import tiny_clip

from stockpot.tasks.clip import make_zero_shot


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.folder(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.folder(tmp_path_factory.mktemp("models") / "siglip", "siglip")


@pytest.fixture(scope="session")
def zero_shot(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "zero-shot"
    make_zero_shot(clip, out, classes=tiny_clip.CLASSES, templates=tiny_clip.TEMPLATES)
    return out
