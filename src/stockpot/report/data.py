"""The numbers of a page as files: CSV and JSON for each figure and each table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from stockpot._types import JSON, StrPath
from stockpot.io.atomic import dump_json, write_bytes
from stockpot.report.tables import Cell, Table


def table_to_csv(table: Table, *, first: str = "name") -> str:
    """`table` as CSV with all digits; missing values are empty.

    >>> print(table_to_csv(Table(("score",), ())), end="")
    name,score
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([first, *table.columns])
    for row in table.rows:
        writer.writerow([row.name, *(_text(cell) for cell in row.cells)])
    return out.getvalue()


def table_to_json(table: Table, *, first: str = "name") -> list[JSON]:
    """`table` as a list of objects, one for each row; numbers are numbers, missing ones null."""
    rows: list[JSON] = []
    for row in table.rows:
        told: dict[str, JSON] = {first: row.name}
        told |= {c: _value(cell) for c, cell in zip(table.columns, row.cells, strict=True)}
        rows.append(told)
    return rows


def write_data(tables: Mapping[str, Table], folder: StrPath, *, force: bool = False) -> list[Path]:
    """Write `NAME.csv` and `NAME.json` of each table into `folder`; returns their paths.

    Raises:
        OutputExistsError: one of them exists and `force` is false.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        for suffix, data in (
            ("csv", table_to_csv(table).encode()),
            ("json", dump_json(table_to_json(table))),
        ):
            path = Path(folder) / f"{name}.{suffix}"
            write_bytes(path, data, force=force)
            written.append(path)
    return written


def _text(cell: Cell) -> str:
    return cell.sort if cell.sort or cell.text == "–" else cell.text


def _value(cell: Cell) -> JSON:
    text = _text(cell)
    if text == "":
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if text.lstrip("-").isdigit() else number
