"""Options as fields of frozen dataclasses, declared once for Python callers and for commands.

    @dataclass(frozen=True, kw_only=True)
    class Greedy(Recipe):
        order: Literal["score", "random", "given"] = option("score", help="In which to try them.")

The command line makes `--order` of it: the name, the type and the default are the field's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

_KEY = "stockpot"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a command line needs to know of a field beyond its name, type and default.

    Attributes:
        help: one sentence.
        flags: as typed, such as `("--last", "-n")`; empty means `--` and the field's name.
        metavar: what stands for the value in the help; None means that of its type.
        minimum: least value of a number; None means no bound.
        hidden: whether commands leave it out; Python callers still have it.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: float | None = None
    hidden: bool = False

    def flags_of(self, name: str) -> tuple[str, ...]:
        """The flags of the field called `name`."""
        return self.flags or (f"--{name.replace('_', '-')}",)


def option(
    default: Any = MISSING,
    *,
    help: str,
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
    minimum: float | None = None,
    hidden: bool = False,
) -> Any:
    """A dataclass field that is an option of commands; see `Option`. No default: it is required."""
    about = Option(help=help, flags=flags, metavar=metavar, minimum=minimum, hidden=hidden)
    if default is MISSING:
        return field(metadata={_KEY: about})
    return field(default=default, metadata={_KEY: about})


def options_of(cls: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of the dataclass `cls` that are options, in the order of declaration."""
    for item in fields(cls):
        about = item.metadata.get(_KEY)
        if about is not None:
            yield item, about
