"""Reading records: JSON that anyone may have written, bounded in size and checked against a type.

A record (of a soup, a run, a report, a figure) is read in two steps. `read_json` bounds what a file
can cost: its size, its nesting, its numbers; `parse` makes dataclasses of it and names the place of
whatever does not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import stat
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from stockpot._types import JSON, StrPath
from stockpot.errors import StockpotError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
_MAX_DIGITS = 40
_MODEST_BYTES = 64_000_000
# Each where the system has it: a pipe is not waited for, programs started meanwhile do not get it.
_READ = functools.reduce(
    lambda flags, name: flags | getattr(os, name, 0),
    ("O_NONBLOCK", "O_CLOEXEC", "O_NOINHERIT", "O_BINARY"),
    os.O_RDONLY,
)

T = TypeVar("T")


def read_json(path: StrPath, *, error: type[StockpotError] = StockpotError) -> JSON:
    """The JSON in the file `path`.

    It is at most `MAX_BYTES` long and `MAX_DEPTH` levels deep, its numbers are finite, its text can
    be written as UTF-8, and the file is a regular one: nothing is waited for.

    Raises:
        FileNotFoundError: there is no such file.
        StockpotError: of the class `error`, for everything else; it names the file.
    """
    try:
        return loads(read_regular(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        raise error(f"{os.fspath(path)} cannot be read: {problem}") from problem


def loads(data: bytes | str) -> JSON:
    """JSON within the bounds of `read_json`.

    >>> loads('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}

    Raises:
        ValueError: it is damaged, or beyond the bounds.
    """
    text = data if isinstance(data, str) else data.decode()
    require_modest(text)
    try:
        value: JSON = json.loads(
            text, parse_constant=_not_finite, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    _check(value)
    return value


def require_modest(text: str, *, repeated: int = 0) -> None:
    """Raise where JSON would take more than about 8 × its bytes + 64 MB once it is parsed.

    What it is made of is counted, not parsed: an empty list takes 66 bytes for its three, an object
    of one number 180 for eight. `repeated` counts keys that occur over and over, and take nothing.

    Raises:
        ValueError: it would.
    """
    n = {sign: text.count(sign) for sign in '{[,:"'}
    texts = max(0, n['"'] // 2 - n[":"])
    crowded = max(0, n[":"] - 5 * n["{"])
    cost = 190 * n["{"] + 70 * n["["] + 50 * n[","] + 60 * (n[":"] - repeated + texts)
    if cost + 100 * crowded > 8 * len(text) + _MODEST_BYTES:
        raise ValueError("it holds too many small values for its size")


def parse(kind: type[T], value: object, *, error: type[StockpotError] = StockpotError) -> T:
    """`value`, as JSON gives it, as an instance of the annotation `kind`.

    Understands dataclasses (fields that are unknown are left out), `tuple`, `list`, `Mapping` with
    names as keys, `Literal`, unions (of several dataclasses the key `"kind"` decides, which each of
    them declares as a class attribute), plain values and `Any`. An instance of a dataclass is
    checked field by field, whatever made it.

    Raises:
        StockpotError: of the class `error`, naming the place: `models[3].scores.test.value`.
    """
    try:
        return typing.cast("T", _parse(kind, value, ""))
    except _MisfitError as problem:
        raise error(str(problem)) from None


def recorded_path(path: StrPath) -> str:
    """A local path as a record keeps it: absolute, and without `..`.

    `..` would lead through a folder that need not hold the file, and may be moved or removed.
    """
    # Not resolve(): links are kept. After one, `..` leads elsewhere than it reads.
    whole, short = Path(path).absolute(), Path(os.path.abspath(path))  # noqa: PTH100
    if ".." in whole.parts and whole.exists():
        return str(short if short.exists() and short.samefile(whole) else whole)
    return str(short)


class _MisfitError(ValueError):
    """What does not fit, with its place."""


def read_regular(path: StrPath, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes; nothing is waited for.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer, or a pipe, a device, or another thing that is no file.
    """
    descriptor = os.open(path, _READ)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is longer than {most // 2**20} MiB")
    return data


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _not_finite(text[:_MAX_DIGITS])
    return number


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _check(value: JSON) -> None:
    """Bound the nesting, and refuse text that could not be written again (lone surrogates)."""
    level: list[JSON] = [value]
    for _ in range(MAX_DEPTH):
        texts = [item for item in level if isinstance(item, str)]
        texts += [key for item in level if isinstance(item, dict) for key in item]
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{text!r:.60} is no text") from None
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it has to be there, of each field of a dataclass."""
    hints, missing = typing.get_type_hints(kind), dataclasses.MISSING
    return tuple(
        (field.name, hints[field.name], field.default is field.default_factory is missing)
        for field in dataclasses.fields(kind)
    )


@functools.cache
def _shape(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Origin and arguments of a type, and whether it is a dataclass; asked of every value."""
    structured = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    return typing.get_origin(kind), typing.get_args(kind), structured


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, args, structured = _shape(kind)
    if kind is Any or isinstance(kind, str | typing.ForwardRef):  # such as JSON, within itself
        return value
    if structured:
        return _dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where)
    if origin is Literal:
        return value if value in args and isinstance(value, str) else _misfit(kind, value, where)
    if origin in (tuple, list):
        return _sequence(kind, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            _misfit(kind, value, where)
        return {key: _parse(args[1], item, _inside(where, key)) for key, item in value.items()}
    return _plain(kind, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        kind = type(value)
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        _misfit(kind, value, where)
    given = {}
    for name, hint, required in _fields(kind):
        if name in value:
            given[name] = _parse(hint, value[name], _inside(where, name))
        elif required:
            raise _MisfitError(f"{where or 'the record'} lacks {name!r}")
    try:
        return kind(**given)
    except (TypeError, ValueError) as problem:
        # Without a place: it names the field itself, and may be an option that somebody typed.
        raise _MisfitError(f"{where}: {problem}" if where else str(problem)) from None


def _union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    structured = [one for one in args if _shape(one)[2]]
    if isinstance(value, dict) and structured:
        if len(structured) > 1:
            named = value.get("kind")
            structured = [one for one in structured if getattr(one, "kind", None) == named]
        if not structured:
            raise _MisfitError(f"{where or 'the record'}: {named!r:.60} is no kind of it")
        return _parse(structured[0], value, where)
    problem: _MisfitError | None = None
    for kind in args:
        try:
            return _parse(kind, value, where)
        except _MisfitError as found:
            # The least nested alternative says it best: "expected a number", not "lacks 'value'".
            problem = problem or found
    assert problem is not None
    raise problem


def _sequence(kind: Any, value: Any, where: str) -> Any:
    origin, args, _ = _shape(kind)
    if not isinstance(value, list | tuple):
        _misfit(kind, value, where)
    kinds = (args[0],) * len(value) if args[-1] is ... or origin is list else args
    if len(kinds) != len(value):
        _misfit(kind, value, where)
    return origin(
        _parse(one, item, f"{where}[{i}]")
        for i, (one, item) in enumerate(zip(kinds, value, strict=True))
    )


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (types.NoneType, None):
        return None if value is None else _misfit(kind, value, where)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        _misfit(kind, value, where)
    return value


_WORDS = {str: "text", float: "a number", int: "a whole number", bool: "true or false"}


def _misfit(kind: Any, value: Any, where: str) -> NoReturn:
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        expected = "one of " + ", ".join(map(str, typing.get_args(kind)))
    elif origin in _WORDS:
        expected = _WORDS[origin]
    elif origin in (tuple, list):
        expected = "a list"
    elif kind in (None, types.NoneType):
        expected = "null"
    else:
        expected = "an object"
    raise _MisfitError(f"{where or 'the record'}: expected {expected}, found {value!r:.60}")


def _inside(where: str, name: str) -> str:
    return f"{where}.{name:.60}" if where else f"{name:.60}"
