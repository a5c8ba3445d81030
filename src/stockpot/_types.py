"""Small types and conversions that every layer uses."""

from __future__ import annotations

import os
import re
from typing import Protocol, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGTP", 1)},
    **{f"{p}IB": 1024**i for i, p in enumerate("KMGTP", 1)},
}


class Progress(Protocol):
    """Called as work proceeds; `done` and `total` count the unit that `what` names.

    `total` is None while it is unknown. The library itself never prints.
    """

    def __call__(self, done: int, total: int | None, what: str) -> None: ...


def no_progress(done: int, total: int | None, what: str) -> None:
    """The default: report to nobody."""


def kind_of(value: object) -> str:
    """What `value` is, with its article, for messages.

    >>> kind_of(1), kind_of("text"), kind_of(None)
    ('an int', 'a str', 'None')
    """
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def parse_bytes(text: str | int) -> int:
    """Bytes meant by a size such as `"1GB"` (10⁹), `"1GiB"` (2³⁰), `"500 MB"` or a plain number.

    >>> parse_bytes("1GB"), parse_bytes("1.5 GiB"), parse_bytes(42)
    (1000000000, 1610612736, 42)
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write for example 500MB, 1GB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(n_bytes: int) -> str:
    """`n_bytes` for people, in decimal units.

    >>> format_bytes(999), format_bytes(1_500_000), format_bytes(70_000_000_000)
    ('999 B', '1.5 MB', '70.0 GB')
    """
    value, unit = float(n_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{n_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
