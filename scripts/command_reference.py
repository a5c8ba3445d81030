"""Write docs/commands.md from the help of the commands; with --check, only compare.

The help is the source: a command is documented when its own help says what it does.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEADER = """\
# Commands

<!-- Made by scripts/command_reference.py from the commands' own help: change that instead. -->

What a command finds goes to stdout; progress and messages go to stderr. With `--json`, stdout holds
exactly one JSON object, also when the command fails: `{"error": {"type", "message", "problems"}}`.

| exit code | means |
|---|---|
| 0 | done |
| 1 | refused or failed; the message has what was found and what to do |
| 2 | wrong usage |
| 130 | stopped by Ctrl-C; most commands continue when they are given again |

No output is overwritten without `--force`. An output appears whole or not at all.

Shells complete commands and options after `eval "$(_STOCKPOT_COMPLETE=bash_source stockpot)"` (or
`zsh_source`, `fish_source`).
"""


def help_of(*words: str) -> str:
    """What `stockpot WORDS --help` prints, at a width that does not depend on the terminal."""
    from stockpot.cli import main

    os.environ["COLUMNS"] = "96"
    os.environ["NO_COLOR"] = "1"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--help"])
    if code != 0:
        raise SystemExit(f"stockpot {' '.join(words)} --help ended with {code}")
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def commands() -> list[str]:
    """The names of all commands, in the order of the help."""
    from stockpot.cli.app import app

    return list(app.lazy)


def reference() -> str:
    """The whole page."""
    parts = [HEADER, f"```console\n$ stockpot --help\n{help_of()}\n```"]
    parts += [
        f"## stockpot {name}\n\n```console\n$ stockpot {name} --help\n{help_of(*name.split())}\n```"
        for name in [*commands(), "journal list", "journal clear", "adapter extract"]
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    text = reference()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    sys.stderr.write("docs/commands.md is not what --help says; run: make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
