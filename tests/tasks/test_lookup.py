"""What `--task` accepts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from stockpot.errors import TaskError
from stockpot.tasks import resolve

TASK_FILE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch.utils.data import TensorDataset
from stockpot.tasks.classification import ClassificationTask
from stockpot.evaluate.task import Split
from beside import N_CLASSES

@dataclass
class Settings:
    n: int = 4

def make():
    data = TensorDataset(torch.zeros(Settings().n, 2), torch.zeros(4, dtype=torch.long))
    return ClassificationTask(
        build=lambda: torch.nn.Linear(2, N_CLASSES), splits={"val": Split(data)}
    )

ready = make()
not_a_task = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("N_CLASSES = 7")
    path = tmp_path / "task.py"
    path.write_text(TASK_FILE)
    return path


def test_the_built_in_name_gives_the_handwriting_task() -> None:
    assert {"held-out", "test", "fonts"} <= set(resolve("handwriting").splits)


@pytest.mark.parametrize("name", ["ready", "make"])
def test_a_file_gives_an_object_or_what_a_function_returns(file: Path, name: str) -> None:
    before = list(sys.path)
    task = resolve(f"{file}:{name}")
    assert list(task.splits) == ["val"]
    assert task.build().out_features == 7
    assert sys.path == before


def test_two_files_of_one_name_stay_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "task.py"
    other.parent.mkdir()
    other.write_text(TASK_FILE.replace("from beside import N_CLASSES", "N_CLASSES = 9"))
    first, second = resolve(f"{file}:ready"), resolve(f"{other}:ready")
    assert (first.build().out_features, second.build().out_features) == (7, 9)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("handwritting", "did you mean 'handwriting'"),
        ("task.json", "path/to/file.py:name"),
        ("missing.py:task", "does not exist"),
        ("{file}:redy", "did you mean 'ready'"),
        ("{file}", "write {file}:ready"),
        ("missing.py", "missing.py does not exist"),
        ("{file}:not_a_task", "is an int without splits, metric"),
    ],
)
def test_what_names_no_task_is_refused_with_the_remedy(file: Path, spec: str, words: str) -> None:
    with pytest.raises(TaskError) as caught:
        resolve(spec.format(file=file))
    assert words.format(file=file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def make_task(n=3): ...\ndef build(): ...", "write {0}:make_task$"),
        ("def make(): ...\ndef other(n): ...\nfrom json import load", "write {0}:make$"),
        ("def a(*given): ...\ndef b(): ...", "write {0}:a or {0}:b$"),
        ("x = 1", "defines neither a task nor a function without arguments"),
    ],
)
def test_a_file_without_a_name_is_answered_with_the_names_in_it(
    tmp_path: Path, text: str, names: str
) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(TaskError, match=names.format(re.escape(str(path)))):
        resolve(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n1 / 0", "line 2: ZeroDivisionError"),
        ("def task():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("x = 1\ny = (", "line 2: SyntaxError"),
    ],
)
def test_an_error_inside_the_file_says_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(TaskError, match=words) as caught:
        resolve(f"{path}:task")
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError | SyntaxError)


def test_a_file_that_fails_leaves_no_module(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    before = set(sys.modules)
    with pytest.raises(TaskError):
        resolve(f"{tmp_path / 'broken.py'}:task")
    assert set(sys.modules) == before
