"""How commands show results, failures, notes and progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stockpot._types import JSON, Progress, no_progress
from stockpot.errors import StockpotError

if TYPE_CHECKING:
    from stockpot._figures import Cell, Table


def emit(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Write the result of a command to stdout: `data` as one JSON object, or `text`."""
    sys.stdout.write((_json(data) if as_json else text.rstrip("\n")) + "\n")


def failure(error: BaseException, *, as_json: bool, kind: str | None = None) -> None:
    """Say why a command failed: on stderr, or as one JSON object on stdout."""
    message = error.format_message() if hasattr(error, "format_message") else _message(error)
    if not as_json:
        sys.stderr.write(f"Error: {message or type(error).__name__}\n")
        return
    problems = [_plain(problem) for problem in getattr(error, "problems", ())]
    problems += [str(difference) for difference in getattr(error, "differences", ())]
    found = {"type": kind or type(error).__name__, "message": message, "problems": problems}
    sys.stdout.write(_json({"error": found}) + "\n")


def _message(error: BaseException) -> str:
    """What happened; of the system's own errors without their number."""
    if isinstance(error, OSError) and not isinstance(error, StockpotError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    return str(error)


def note(text: str) -> None:
    """Tell a person something that is no result: one line on stderr."""
    sys.stderr.write(text + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left and the others to the right.

    >>> print(table(["model", "score"], [["base", "0.76"], ["greedy", "0.981"]]))
    model   score
    base     0.76
    greedy  0.981
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


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
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        rows: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            if what not in rows:
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done, total=total)

        yield show


def _json(data: JSON) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)


def _plain(problem: Any) -> JSON:
    fields = getattr(problem, "__dataclass_fields__", None)
    return str(problem) if fields is None else {name: getattr(problem, name) for name in fields}
