"""Tables as people and programs read them: cells as text, CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

from stockpot._figures import Cell, Column, Estimate, Row, Table
from stockpot._markdown import escape_markdown
from stockpot._types import JSON
from stockpot.report.marks import shown, shown_interval
from stockpot.report.model import best_cells


class Text(NamedTuple):
    """One cell as it is shown: its text, what it sorts by, the interval below it."""

    text: str
    sort: str
    interval: str = ""
    best: bool = False


class TextRow(NamedTuple):
    """One row as it is shown."""

    row: Row
    cells: tuple[Text, ...]


def as_text(table: Table, *, higher_is_better: bool | None = None) -> list[TextRow]:
    """The rows of a table as text; with a direction, the best cell of each column is marked."""
    best = (
        set()
        if higher_is_better is None
        else set(best_cells(table, higher_is_better=higher_is_better))
    )
    return [
        TextRow(
            row,
            tuple(
                _text(cell, column)._replace(best=(i, j) in best)
                for j, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True))
            ),
        )
        for i, row in enumerate(table.rows)
    ]


def _text(cell: Cell, column: Column) -> Text:
    if cell is None:
        return Text("–", "")
    if isinstance(cell, Estimate):
        interval = ""
        if cell.low is not None and cell.high is not None:
            interval = shown_interval(cell.low, cell.high, column)
        return Text(shown(cell.value, column), repr(cell.value), interval)
    if isinstance(cell, bool):
        return Text("yes" if cell else "no", str(int(cell)))
    if isinstance(cell, float):
        return Text(shown(cell, column), repr(cell))
    return Text(str(cell), str(cell))


def _number(cell: Cell) -> JSON:
    return cell.value if isinstance(cell, Estimate) else cell


def to_csv(table: Table) -> str:
    """`table` as CSV with all digits; missing values are empty.

    >>> print(to_csv(Table(name="t", title="T", columns=(Column(name="score"),), rows=())), end="")
    name,score
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", *(column.name for column in table.columns)])
    for row in table.rows:
        writer.writerow([row.name, *map(_number, row.cells)])
    return out.getvalue()


def to_rows(table: Table) -> list[JSON]:
    """`table` as a list of objects, one for each row; numbers are numbers, missing ones null."""
    names = [column.name for column in table.columns]
    return [
        {"name": row.name, **dict(zip(names, map(_number, row.cells), strict=True))}
        for row in table.rows
    ]


def to_markdown(table: Table, *, higher_is_better: bool | None = None) -> str:
    """`table` for a Markdown page; nothing in it is markup, whatever it holds."""
    columns = [table.first, *(column.name for column in table.columns)]
    rule = ["---", *["---:"] * len(table.columns)]
    lines = [f"| {' | '.join(map(escape_markdown, columns))} |", f"| {' | '.join(rule)} |"]
    for row, cells in as_text(table, higher_is_better=higher_is_better):
        shown_cells = [escape_markdown(row.name)]
        for cell in cells:
            text = f"**{escape_markdown(cell.text)}**" if cell.best else escape_markdown(cell.text)
            interval = f" ({escape_markdown(cell.interval)})" if cell.interval else ""
            shown_cells.append(text + interval)
        lines.append(f"| {' | '.join(shown_cells)} |")
    return "\n".join(lines)
