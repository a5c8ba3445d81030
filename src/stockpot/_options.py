"""Options as fields of frozen dataclasses, declared once for Python callers and for commands.

    @dataclass(frozen=True, kw_only=True)
    class Greedy(Recipe):
        order: Literal["score", "random", "given"] = option("score", help="In which to try them.")

The command line makes `--order` of it: the name, the type and the default are the field's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

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
