"""How commands show results, failures, notes and progress."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from stockpot._types import JSON, Progress, no_progress
from stockpot.errors import StockpotError

if TYPE_CHECKING:
    from stockpot._figures import Cell, Table


def emit(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Write the result of a command to stdout: `data` as one JSON object, or `text`."""
    if as_json:
        _write_json(data)
    else:
        _write(sys.stdout, text.rstrip("\n") + "\n")


def failure(error: BaseException, *, as_json: bool, kind: str | None = None) -> None:
    """Say why a command failed: on stderr, or as one JSON object on stdout."""
    message = error.format_message() if hasattr(error, "format_message") else _message(error)
    if not as_json:
        note(f"Error: {message or type(error).__name__}")
        return
    problems = [_plain(problem) for problem in getattr(error, "problems", ())]
    problems += [str(difference) for difference in getattr(error, "differences", ())]
    found = {"type": kind or type(error).__name__, "message": message, "problems": problems}
    _write_json({"error": found})


def _message(error: BaseException) -> str:
    """What happened; of the system's own errors without their number."""
    if isinstance(error, OSError) and not isinstance(error, StockpotError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    return str(error)


def note(text: str) -> None:
    """Write what is no result to stderr."""
    _write(sys.stderr, text + "\n")


# What a terminal would obey rather than show: control characters but for line ends and tabs, marks
# that turn the direction of text, and halves of characters, as of file names that are no UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    r"""`text` with everything that a terminal would obey written out.

    >>> escaped("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _write(stream: TextIO, text: str) -> None:
    shown = escaped(text)
    try:
        stream.write(shown)
    except UnicodeEncodeError:  # the locale has no such letters
        encoding = stream.encoding
        stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))


def _write_json(data: JSON) -> None:
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(data, indent=2, ensure_ascii=not unicode, allow_nan=False)
    sys.stdout.write(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left and the others to the right.

    >>> print(table(["model", "score"], [["base", "0.76"], ["greedy", "0.981"]]))
    model   score
    base     0.76
    greedy  0.981
    """
    lines = [[_one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n\n".join(_aligned(lines, widths, part) for part in _parts(widths))


def _one_line(cell: str) -> str:
    """A cell in which nothing breaks the row."""
    return escaped(cell).replace("\n", "\\n").replace("\t", "\\t")


def _parts(widths: Sequence[int]) -> Iterator[list[int]]:
    """The columns of each part of a table that fits the screen; the first is in all of them.

    A table whose first column takes more than half of the screen stays in one piece.
    """
    most = shutil.get_terminal_size((80, 24)).columns
    first, *others = range(len(widths))
    if widths[first] > most // 2:
        yield [first, *others]
        return
    part, taken = [first], widths[first]
    for column in others:
        if taken + 2 + widths[column] > most and len(part) > 1:
            yield part
            part, taken = [first], widths[first]
        part.append(column)
        taken += 2 + widths[column]
    yield part


def _aligned(lines: Sequence[Sequence[str]], widths: Sequence[int], columns: list[int]) -> str:
    return "\n".join(
        "  ".join(
            line[i].ljust(widths[i]) if i == 0 else line[i].rjust(widths[i]) for i in columns
        ).rstrip()
        for line in lines
    )


def score_table(
    scores: Mapping[str, Mapping[str, Any]],
    first: str = "model",
    *,
    extra: Sequence[str] = (),
    cells: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Scores {row: {split: score as JSON}} with half the width of their 95 % intervals.

    `extra` names further columns, whose `cells` stand under the name of the row.
    """
    splits = list(dict.fromkeys(split for row in scores.values() for split in row))
    rows = [
        [name, *(_score(row.get(split)) for split in splits), *(cells or {}).get(name, ())]
        for name, row in scores.items()
    ]
    return table([first, *splits, *extra], rows)


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    if score["low"] is None or score["high"] is None:
        return f"{score['value']:.4f}"
    return f"{score['value']:.4f} ±{(score['high'] - score['low']) / 2:.3f}"


def figure_text(figure: Table) -> str:
    """A table of `stockpot._figures` as text; the row that was chosen has a mark."""
    chosen = any(row.chosen for row in figure.rows)
    rows = [
        [f"{'* ' if row.chosen else '  '}{row.name}" if chosen else row.name]
        + [_cell(cell) for cell in row.cells]
        for row in figure.rows
    ]
    first = f"  {figure.first}" if chosen else figure.first
    return table([first, *(column.name for column in figure.columns)], rows)


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str | int):
        return str(cell)
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) >= 1e-3 or cell == 0 else f"{cell:.2e}"
    if cell.low is None or cell.high is None:
        return f"{cell.value:.4f}"
    return f"{cell.value:.4f} ±{(cell.high - cell.low) / 2:.3f}"


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr while the block runs, if a person is looking; else nothing."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        rows: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            if what not in rows:
                rows[what] = bar.add_task(_one_line(what), total=total)
            bar.update(rows[what], completed=done, total=total)

        yield show


def _plain(problem: Any) -> JSON:
    fields = getattr(problem, "__dataclass_fields__", None)
    return str(problem) if fields is None else {name: getattr(problem, name) for name in fields}
