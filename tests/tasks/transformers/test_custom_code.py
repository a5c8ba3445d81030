"""Code that lies in a model folder is never run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stockpot.errors import TaskError
from stockpot.tasks.clip.classifier import read_config
from stockpot.tasks.transformers import kinds

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose configuration is a class of a file beside it."""
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.TheirConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(CODE)
    return tmp_path


def test_a_classifier_of_custom_code_is_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"trust_remote_code|custom code"):
        kinds.architecture(str(folder), "AutoModelForSequenceClassification")
    assert not list(folder.rglob("ran"))


def test_an_image_text_model_of_custom_code_is_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"config\.json cannot be used"):
        read_config(folder)
    assert not list(folder.rglob("ran"))
