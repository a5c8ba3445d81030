"""A hash that changes when the code behind a task changes, so that no stale score is reused."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stockpot.evaluate.task import Metric

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))
_LIBRARIES = tuple(
    str(Path(sysconfig.get_paths()[name]).resolve())
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


_OWN = str(Path(__file__).resolve().parents[1])
# Where 0.1 had what tasks refer to by default: their journals answer as long as names stay.
_MODULES_OF_0_1 = {
    "stockpot.tasks.base": "stockpot.models.classification",
    "stockpot.evaluate.metrics": "stockpot.models.metrics",
}


def source_hash(*objects: Any) -> str:
    """32 hex digits over the source of functions and classes and of what they refer to.

    References are followed through globals, closures, partials and default values, as far as the
    code is the user's own: installed packages, and stockpot itself, count by name only. Data that
    the code reads while it runs is not seen: give the task a `version` of its own then.
    """
    digest = hashlib.sha256()
    for text in _describe(objects, seen=set()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]


def _describe(value: Any, *, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _CONSTANTS):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (tuple, list)):
        yield type(value).__name__
        for item in value:
            yield from _describe(item, seen=seen)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key)
            yield from _describe(value[key], seen=seen)
    elif isinstance(value, functools.partial):
        yield from _describe((value.func, value.args, value.keywords), seen=seen)
    elif isinstance(value, types.MethodType):
        yield from _describe((value.__func__, value.__self__), seen=seen)
    elif isinstance(value, types.FunctionType):
        yield from _describe_function(value, seen=seen)
    elif isinstance(value, type):
        yield from _describe_class(value, seen=seen)
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    else:
        yield _name_of(type(value))
        yield from _describe(type(value), seen=seen)
        for name, field in sorted(_fields_of(value).items()):
            yield name
            yield from _describe(field, seen=seen)


def _name_of(value: Any) -> str:
    return f"{_MODULES_OF_0_1.get(value.__module__, value.__module__)}.{value.__qualname__}"


def _fields_of(value: Any) -> dict[str, Any]:
    names = getattr(type(value), "__dataclass_fields__", {})
    fields = {name: getattr(value, name, None) for name in names}
    if isinstance(value, Metric):  # 0.1 asked whether values lie in [0, 1]; no output depends on it
        fields = {name: found for name, found in fields.items() if name not in ("low", "high")}
        fields["bounded"] = (value.low, value.high) == (0, 1)
    return fields


def _describe_function(function: types.FunctionType, *, seen: set[int]) -> Iterator[str]:
    yield _name_of(function)
    if _installed(function.__code__.co_filename):
        return
    yield _text(function)
    yield from _describe(function.__defaults__, seen=seen)
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        yield name
        try:
            yield from _describe(cell.cell_contents, seen=seen)
        except ValueError:  # a cell that is not filled yet refers to nothing
            continue
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _describe(function.__globals__[name], seen=seen)


def _describe_class(cls: type, *, seen: set[int]) -> Iterator[str]:
    yield _name_of(cls)
    try:
        installed = _installed(inspect.getfile(cls))
    except (TypeError, OSError):  # built in, or made where no file is
        installed = cls.__module__ == "builtins"
    if installed:
        return
    yield _text(cls)
    for base in cls.__bases__:
        yield from _describe(base, seen=seen)
    for name in sorted(vars(cls)):
        member = inspect.unwrap(getattr(vars(cls)[name], "__func__", vars(cls)[name]))
        if isinstance(member, types.FunctionType):
            yield from _describe_function(member, seen=seen)


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _text(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        # Typed at a prompt or made by exec: the compiled code stands for the text.
        code = getattr(value, "__code__", None)
        if code is None:
            return ""
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        return f"{code.co_code.hex()} {constants!r} {code.co_names!r}"


def _installed(filename: str) -> bool:
    if "site-packages" in filename or "dist-packages" in filename:
        return True
    return str(Path(filename).resolve()).startswith((*_LIBRARIES, _OWN))
