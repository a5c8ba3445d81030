"""Which line of a person's own code an error comes from."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep
_LIBRARIES = tuple(
    path + os.sep
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def place_of(error: BaseException) -> str | None:
    """`"my_task.py, line 12"`: the last frame of neither stockpot nor a library; None without.

    Of a syntax error it is the line that cannot be parsed.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and _is_own(error.filename):
        return f"{_shown(error.filename)}, line {error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{_shown(own[-1].filename)}, line {own[-1].lineno}" if own else None


def one_line(error: BaseException) -> str:
    """`KeyError: 'image' (my_task.py, line 12)`: the kind, the first line, and the place."""
    first = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    place = place_of(error)
    return text if place is None else f"{text} ({place})"


def _is_own(file: str) -> bool:
    return not file.startswith(("<", _PACKAGE, *_LIBRARIES))


def _shown(file: str) -> str:
    """The file as a person would write it: below the current folder, or in full."""
    here = str(Path.cwd()) + os.sep
    return file.removeprefix(here)
