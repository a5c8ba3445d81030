"""A user's own training program as the job of a sweep."""

from __future__ import annotations

import os
import shlex
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot.errors import TrainingError

_GIVEN = ("base", "index", "out", "seed")


def check_command(command: str, names: set[str]) -> None:
    """Refuse a command that cannot be filled in, before anything is run.

    `names` are the hyper-parameters that every run has.

    Raises:
        TrainingError: it has a place for something that no run has, or none for `{out}`.
    """
    try:
        places = {
            field for _, field, _, _ in string.Formatter().parse(command) if field is not None
        }
    except ValueError as error:
        raise TrainingError(f"{command!r} cannot be filled in: {error}") from None
    known = names | set(_GIVEN)
    if unknown := sorted(places - known):
        raise TrainingError(
            f"the command has places for {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    if "out" not in places:
        raise TrainingError("the command has no place for {out}, where the checkpoint has to go")


def run_command(command: str, values: Mapping[str, Any], out: Path, log: Path) -> None:
    """Run `command` with `values` filled in, output to `log`. No shell is involved.

    Each word of the command is filled in by itself, so values with spaces stay one argument.

    Raises:
        TrainingError: it fails, or leaves nothing at `out`; quotes the end of its output.
    """
    words = [word.format_map({**values, "out": str(out)}) for word in shlex.split(command)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        try:
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            raise TrainingError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode != 0 or not os.path.exists(out):  # noqa: PTH110
        ended = (
            f"ended with code {done.returncode}" if done.returncode else f"left nothing at {out}"
        )
        tail = log.read_bytes()[-1000:].decode(errors="replace").strip()
        raise TrainingError(f"{shlex.join(words)} {ended}; the end of {log}:\n{tail}")
