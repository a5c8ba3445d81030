"""Write docs/formats.md from the table of formats; with --check, only compare."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "formats.md"
HEADER = """\
# Formats

<!-- Made by scripts/formats_table.py from stockpot.formats.FORMATS: change that instead. -->

What a checkpoint may be, as `stockpot.open` and every command take it. Content counts more than the
name: a torch file called `.bin` and one called `.pt` are read alike. Reading is lazy and executes
nothing; writing is atomic, and the suffix of the output names its format (none: a model folder).

| format | names | read | written | what goes with the weights | what else to know |
|---|---|---|---|---|---|
"""
FOOTER = """
## Formats of other packages

A format is one class: a subclass of `stockpot.formats.Format` with a `name`, `recognises` and
`open`, whose checkpoints pass `stockpot.testing.reader_conformance`. In Python it is registered for
the process, `stockpot.formats.register(ToyFormat())`. A package brings one to the command line by
its entry points; it is imported when a path is of no format of the table:

```toml
[project.entry-points."stockpot.formats"]
toy = "toy_weights:ToyFormat"
```

Formats of the table are asked first, so that none of them can be replaced.
"""


def page() -> str:
    """The whole page."""
    from stockpot.formats import FORMATS

    rows = []
    for one in FORMATS:
        names = ", ".join(f"`{name}`" for name in (*one.suffixes, *one.in_folders)) or "a folder"
        read, written = ("yes" if one.reads else "no"), ("yes" if one.writes else "no")
        cells = (one.summary, names, read, written, one.side_files, one.remedy)
        rows.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(rows) + FOOTER


def main() -> int:
    """Write the page, or say whether it is up to date."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    sys.stderr.write("docs/formats.md is not what the table of formats shows; run: make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
