from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks.clip import tiny_clip

import stockpot


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.folder(tmp_path_factory.mktemp("models") / "clip")


def test_it_writes_a_classifier_and_says_what_scripts_may_rely_on(run, clip, tmp_path) -> None:
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\n")
    (tmp_path / "templates.txt").write_text("a photo of {}\nthe {}\n")
    command = ["clip-head", clip, "--classes", tmp_path / "classes.txt"]
    result = run(
        *command, "--templates", tmp_path / "templates.txt", "-o", tmp_path / "out", "--json"
    )
    assert result.code == 0, result.err
    assert result.json["classes"] == ["zero", "one", "two"]
    assert result.json["templates"] == ["a photo of {}", "the {}"]
    assert result.json["features"] == 12
    assert result.json["output"] == str(tmp_path / "out")
    assert stockpot.open(tmp_path / "out")["head.weight"].shape == (3, 12)
    again = run(*command, "-o", tmp_path / "out", "--json")
    assert again.code == 1
    assert again.json["error"]["type"] == "OutputExistsError"


def test_classes_and_one_template_may_stand_on_the_command_line(run, clip, tmp_path) -> None:
    result = run(
        "clip-head", clip, "--classes", "zero, one", "--templates", "a photo of the digit {}",
        "-o", tmp_path / "head.safetensors", "--head-only",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "2 classes, 1 template, 12 features, logits scaled by 20.09" in result.out
    assert set(stockpot.open(tmp_path / "head.safetensors")) == {"head.weight", "head.bias"}
    plain = run("clip-head", clip, "--classes", "zero,one", "-o", tmp_path / "out")
    assert "80 templates" in plain.out


def test_a_file_that_is_missing_is_named(run, clip, tmp_path) -> None:
    result = run("clip-head", clip, "--classes", "absent.txt", "-o", tmp_path / "out")
    assert result.code == 1
    assert "absent.txt cannot be read" in result.err
