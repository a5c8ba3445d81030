"""Options as fields of frozen dataclasses, declared once for Python callers and for commands.

    @dataclass(frozen=True, kw_only=True)
    class Greedy(Recipe):
        order: Literal["score", "random", "given"] = option("score", help="In which to try them.")

The command line makes `--order` of it: the name, the type and the default are the field's own.
"""

from __future__ import annotations

import functools
import numbers as kinds
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stockpot.errors import RecipeError

_KEY = "stockpot"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a command line needs to know of a field beyond its name, type and default.

    Attributes:
        help: one sentence.
        flags: as typed, such as `("-o", "--output")`; empty means `--` and the field's name.
        metavar: what stands for the value in the help; None means that of its type.
        minimum: least value of a number; None means no bound.
        parse: makes the value of what was typed; raises ValueError, whose text is shown. None
            means that of the type: a tuple of numbers is a comma-separated list, a tuple of text
            an option that may be given again.
        many: `tuple` or `dict`, made of the values that `parse` gives, where the option may be
            given again; None where it may not.
        needs: the field without which this one means nothing.
        excludes: the field that cannot be given together with this one.
        positional: whether it is an argument and no `--option`.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: float | None = None
    parse: Callable[[str], Any] | None = None
    many: Callable[[Iterable[Any]], Any] | None = None
    needs: str | None = None
    excludes: str | None = None
    positional: bool = False

    def flags_of(self, name: str) -> tuple[str, ...]:
        """The flags of the field called `name`."""
        return self.flags or (f"--{name.replace('_', '-')}",)


def option(default: Any = MISSING, **about: Any) -> Any:
    """A dataclass field that is an option of commands; required without a default.

    Args:
        default: of the field and of the command alike; a type such as `dict` makes it.
        about: the attributes of `Option`.
    """
    known = Option(**about)
    if default is MISSING:
        return field(metadata={_KEY: known})
    if isinstance(default, type):
        return field(default_factory=default, metadata={_KEY: known})
    return field(default=default, metadata={_KEY: known})


def options_of(cls: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of the dataclass `cls` that are options, in the order of declaration."""
    for item in fields(cls):
        about = item.metadata.get(_KEY)
        if about is not None:
            yield item, about


def check_options(given: Any) -> None:
    """Refuse what the fields of the dataclass `given` do not take: other words, types, less.

    The command line does so as it reads; this is for callers in Python.

    Raises:
        RecipeError: names the field, its value and what it takes.
    """
    types = _types(type(given))  # type: ignore[arg-type]  # a class can be hashed
    for item in fields(given):
        value, takes = getattr(given, item.name), types.get(item.name, ())
        if not _fits(value, takes):
            raise RecipeError(f"{item.name} is {value!r}; expected {_in_words(takes)}")
        about = item.metadata.get(_KEY)
        least = None if about is None else about.minimum
        if least is not None and isinstance(value, kinds.Real) and value < least:
            raise RecipeError(f"{item.name} is {value}; expected {least:g} or more")


@functools.cache
def _types(cls: type) -> Mapping[str, tuple[Any, ...]]:
    """Field → the types that it takes, where these are checked."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class of somebody else's, with names for type checkers alone
        return {}
    return {name: _alternatives(hint) for name, hint in hints.items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    known = all(part in (bool, int, float, NoneType) or get_origin(part) is Literal
                for part in parts)  # fmt: skip
    return parts if known else ()


def _fits(value: Any, takes: tuple[Any, ...]) -> bool:
    return not takes or any(_is_a(value, one) for one in takes)


def _is_a(value: Any, one: Any) -> bool:
    if get_origin(one) is Literal:
        return value in get_args(one)
    if one in (int, float):
        kind = kinds.Integral if one is int else kinds.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, one)


def _in_words(takes: tuple[Any, ...]) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", NoneType: "None"}
    words = [
        repr(word)
        for one in takes
        for word in (get_args(one) if get_origin(one) is Literal else ())
    ]
    words += [names[one] for one in takes if one in names]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def numbers(text: str, kind: type[int] | type[float] = float) -> tuple[Any, ...]:
    """The numbers of `first,second,…`, or of `first:last:step` with both ends.

    Raises:
        ValueError: it is neither, or a number is not of the `kind`.

    >>> numbers("0:1:0.25"), numbers("1,2", int), numbers("")
    ((0.0, 0.25, 0.5, 0.75, 1.0), (1, 2), ())
    """
    if ":" in text:
        found = _grid(text)
    else:
        try:
            found = [float(part) for part in text.split(",")] if text else []
        except ValueError:
            raise ValueError(f"{text!r} is no list of numbers; write for example 1,2,3") from None
    if kind is int and any(value % 1 != 0 for value in found):
        raise ValueError(f"{text!r} holds numbers that are not whole")
    return tuple(kind(value) for value in found)


def _grid(text: str) -> list[float]:
    try:
        first, last, step = (float(part) for part in text.split(":"))
        n = round((last - first) / step)
        if n < 0 or n > 10_000:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{text!r} is no grid; write first:last:step, for example 0:1:0.05"
        ) from None
    # Rounded, so that 0.15000000000000002 is the 0.15 that was meant.
    return [round(first + i * step, 10) for i in range(n + 1)]
