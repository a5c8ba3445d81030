"""Options as fields of frozen dataclasses, declared once for Python callers and for commands.

    @dataclass(frozen=True, kw_only=True)
    class Greedy(Recipe):
        order: Literal["score", "random", "given"] = option("score", help="In which to try them.")

The command line makes `--order` of it: the name, the type and the default are the field's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
            means that of the type.
        positional: whether it is an argument and no `--option`.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: float | None = None
    parse: Callable[[str], Any] | None = None
    positional: bool = False

    def flags_of(self, name: str) -> tuple[str, ...]:
        """The flags of the field called `name`."""
        return self.flags or (f"--{name.replace('_', '-')}",)


def option(default: Any = MISSING, **about: Any) -> Any:
    """A dataclass field that is an option of commands; required without a default.

    Args:
        default: of the field and of the command alike.
        about: the attributes of `Option`.
    """
    known = Option(**about)
    if default is MISSING:
        return field(metadata={_KEY: known})
    return field(default=default, metadata={_KEY: known})


def options_of(cls: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of the dataclass `cls` that are options, in the order of declaration."""
    for item in fields(cls):
        about = item.metadata.get(_KEY)
        if about is not None:
            yield item, about
