"""From the text of `--task` to a task."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from stockpot._types import Progress, StrPath, kind_of, no_progress
from stockpot.errors import TaskError
from stockpot.formats.runs import expand_paths

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task


BUILT_IN = MappingProxyType({"handwriting": "stockpot.tasks.handwriting:handwriting"})
"""Tasks that come with stockpot: name → module:function."""

_BASES = MappingProxyType({"handwriting": "stockpot.tasks.handwriting.lab:make_base"})
# Name → function that trains the base of a built-in task and writes it to a path.

_MOST_NAMES = 5
_PARTS = ("splits", "metric", "batch_size", "build", "batches", "predict", "targets", "loss")


def resolve(spec: str, *, models: Iterable[StrPath] = ()) -> Task:
    """The task that `spec` names: built in, `path/to/file.py:name`, a `task.yaml`, `lm-eval:TASKS`.

    A Python file runs, as any program would, with its own folder first on the import path. `name`
    is a task, or a function without required arguments that returns one. What a `.yaml` file may
    say is in `stockpot.tasks.transformers.TaskFile`.

    Args:
        spec: the name.
        models: what is going to be scored; the first model folder among them gives tasks of
            lm-eval their tokenizer.

    >>> sorted(resolve("handwriting").splits)[:3]
    ['blur', 'contrast', 'fonts']

    Raises:
        TaskError: nothing is so named, or it is no task; says which of a task's parts are missing.
    """
    if spec in BUILT_IN:
        module_name, _, name = BUILT_IN[spec].partition(":")
        return _as_task(getattr(importlib.import_module(module_name), name), spec)
    if spec.endswith((".yaml", ".yml")):
        from stockpot.tasks.transformers import load_task

        return load_task(spec)
    if spec.startswith("lm-eval:"):
        from stockpot.tasks.harness import harness_task

        folders = (path for path in expand_paths(models) if (Path(path) / "config.json").is_file())
        return harness_task(spec, model=next(folders, None))
    if spec.endswith(".py"):
        raise TaskError(f"{spec!r} names no task: {_names_in(spec)}")
    path, colon, name = spec.rpartition(":")
    if colon == "" or not path.endswith(".py"):
        raise TaskError(f"{spec!r} names no task: {_remedy(spec)}")
    module = load_file(path)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write path/to/file.py:name"
        raise TaskError(f"{path} defines no {name!r}; {hint}")
    return _as_task(getattr(module, name), spec)


def in_python_file(spec: str) -> bool:
    """Whether `spec` names a task in a user's Python file, which nothing has looked at yet.

    >>> in_python_file("my_task.py:task"), in_python_file("task.yaml")
    (True, False)
    """
    return spec.rpartition(":")[0].endswith(".py")


def _remedy(spec: str) -> str:
    near = difflib.get_close_matches(spec, BUILT_IN, n=1)
    built_in = f"did you mean {near[0]!r}?" if near else f"built in: {', '.join(BUILT_IN)};"
    return (
        f"{built_in} your own is path/to/file.py:name, an object or a function returning one, or a "
        "task.yaml for a transformers model, or lm-eval:TASKS"
    )


def _names_in(file: str) -> str:
    """How a task in `file` is named: by the names of its tasks, else of what may make one."""
    module = load_file(file)
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    tasks = [key for key, value in public.items() if not _missing_parts(value)]
    own = [key for key, value in public.items() if _may_make_one(value, module)]
    # A function is known to make a task only once it has run, which may take minutes.
    likely = [key for key in own if "task" in key.lower()]
    names = tasks or likely or own
    if not names:
        return (
            f"write {file}:name, an object or a function returning one; the file defines neither "
            "a task nor a function without arguments"
        )
    return f"write {' or '.join(f'{file}:{name}' for name in names[:_MOST_NAMES])}"


def _may_make_one(found: object, module: ModuleType) -> bool:
    if not inspect.isfunction(found) or found.__module__ != module.__name__:
        return False
    parameters = inspect.signature(found).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional for p in parameters)


def load_file(file: StrPath) -> ModuleType:
    """The module of a user's Python file, which runs with its own folder first on the import path.

    Raises:
        TaskError: there is no such file, or its code fails; says in which line.
    """
    path = Path(file)
    if not path.is_file():
        raise TaskError(f"{path} does not exist, so no task can be loaded from it")
    absolute = path.resolve()
    # A name of its own per file: two task files may both be called task.py. It must stay in
    # sys.modules, where dataclasses and pickle look up the classes that the file defines.
    digest = hashlib.sha256(str(absolute).encode()).hexdigest()[:12]
    name = f"_stockpot_task_{absolute.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, absolute)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _first_on_path(str(absolute.parent)), _failing_in(absolute):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _failing_in(path: Path) -> Iterator[None]:
    """An error of the task's own code becomes one that says which line of its file failed."""
    try:
        yield
    except Exception as error:  # whatever the user's code raises
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}, line {line}"
        raise TaskError(f"{where}: {type(error).__name__}: {error}") from error


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """Imports find files beside the task file, as if it were run; the path is restored after."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _as_task(found: Any, spec: str) -> Task:
    missing = _missing_parts(found)
    if missing and callable(found):
        with _failing_in(Path(spec.rpartition(":")[0]).resolve()):
            found = found()
        missing = _missing_parts(found)
    if missing:
        raise TaskError(
            f"{spec} is {kind_of(found)} without {', '.join(missing)}; "
            "expected a task such as stockpot.ClassificationTask(build=…, splits=…)"
        )
    task: Task = found
    return task


def _missing_parts(found: Any) -> list[str]:
    # A class has its instances' attributes, but is not a task itself.
    if isinstance(found, type):
        return list(_PARTS)
    return [part for part in _PARTS if not hasattr(found, part)]


def place_base(
    spec: str, folder: StrPath, *, seed: int = 0, progress: Progress = no_progress
) -> str | None:
    """The base that a built-in task brings, made in `folder` unless it is there; else None.

    It becomes `folder/base.safetensors`, a function of `seed` alone.
    """
    if spec not in _BASES:
        return None
    path = Path(folder) / "base.safetensors"
    if not path.exists():
        module_name, _, name = _BASES[spec].partition(":")
        make = getattr(importlib.import_module(module_name), name)
        make(path, seed=seed, progress=progress)
    return str(path)
