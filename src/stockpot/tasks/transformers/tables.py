"""Examples from csv, tsv, jsonl, parquet, image folders, and saved `datasets` folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot._optional import require
from stockpot.errors import TaskError
from stockpot.tasks.transformers.taskfile import DataSource

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Table:
    """Columns of equal length read from `source`; `base` is where relative paths start."""

    source: str
    columns: Mapping[str, Sequence[Any]]
    base: Path

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Sequence[Any]:
        """The values of column `name`.

        Raises:
            TaskError: there is no such column; names those that there are.
        """
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise TaskError(f"{self.source} has no column {name!r}; it has: {known}")
        return self.columns[name]


def read_table(source: DataSource, columns: Sequence[str]) -> Table:
    """The named columns of a file or folder.

    `.csv` with a header (quoted as spreadsheets do), `.tsv` with a header and no quoting, `.jsonl`,
    `.json` (a list of objects), `.parquet`; a folder saved by `datasets` (with a `part` if it holds
    several sets); or a folder of images in one folder per class, whose columns are the first two
    asked for: the path and the class name.

    Raises:
        TaskError: there is no such file, column or part, the format is not known, or no example is
            in it.
    """
    path = source.path
    if not path.exists():
        raise TaskError(f"{path} does not exist")
    if path.is_dir():
        table = _read_folder(source, columns)
    elif path.suffix.lower() in _READERS:
        try:
            rows = _READERS[path.suffix.lower()](path)
        except (ValueError, csv.Error) as error:
            raise TaskError(f"{path} cannot be read: {error}") from error
        table = Table(str(path), rows, path.parent)
    else:
        known = ", ".join(_READERS)
        raise TaskError(f"{path} is of no known kind; expected {known}, or a folder")
    kept = {name: table.column(name) for name in columns}
    if len(table) == 0:
        raise TaskError(f"{path} holds no example")
    return Table(table.source, kept, table.base)


def label_indices(table: Table, label: str, names: Sequence[str]) -> list[int]:
    """Class indices of the label column, which holds names, or indices as numbers or text.

    Raises:
        TaskError: a label is neither a name nor an index of `names`; lists the first of them.
    """
    by_name = {name: index for index, name in enumerate(names)}
    by_name.update({str(i): i for i in range(len(names)) if str(i) not in by_name})
    problems, found = [], []
    for row, value in enumerate(table.column(label)):
        index = by_name.get(_label_text(value))
        if index is None:
            problems.append(f"{table.source}: example {row + 1} has the label {value!r}")
        found.append(-1 if index is None else index)
    if problems:
        shown = "\n".join(problems[:5])
        more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
        allowed = f"expected one of {', '.join(names)}, or 0 to {len(names) - 1}"
        raise TaskError(f"{shown}{more}\n{allowed}", problems)
    return found


def _label_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for n, row in enumerate(rows):
        for name in columns.keys() | row.keys():
            columns.setdefault(name, [None] * n).append(row.get(name))
    return columns


def _read_delimited(path: Path, *, tab: bool) -> dict[str, list[Any]]:
    options: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tab else {"strict": True}
    )
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, **options)
        header = next(reader, [])
        columns: dict[str, list[Any]] = {name: [] for name in header}
        if len(columns) < len(header):
            raise ValueError("a column name stands twice in the header")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} fields, the header has {len(header)}"
                )
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
    return columns


def _read_csv(path: Path) -> dict[str, list[Any]]:
    return _read_delimited(path, tab=False)


def _read_tsv(path: Path) -> dict[str, list[Any]]:
    return _read_delimited(path, tab=True)


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(_object(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return _columns(rows)


def _read_json(path: Path) -> dict[str, list[Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, list):
        raise ValueError(f"expected a list of objects, found {type(found).__name__}")
    return _columns([_object(row) for row in found])


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    table = require("pyarrow.parquet", extra="hf").read_table(path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _read_folder(source: DataSource, columns: Sequence[str]) -> Table:
    path = source.path
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _read_saved(source)
    if (path / "state.json").exists():
        return _read_saved(source)
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    pairs = [
        (str(file.relative_to(path)), folder.name)
        for folder in classes
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not pairs:
        raise TaskError(
            f"{path} is neither a saved data set (dataset_info.json) nor a folder with one folder "
            "of images per class"
        )
    if len(columns) > 2:
        raise TaskError(
            f"{path} is a folder of images, which has no column {columns[2]!r}: list the images in "
            "a table (.csv, .jsonl, .parquet) with their paths"
        )
    files, names = zip(*pairs, strict=True)
    return Table(str(path), dict(zip(columns, (files, names), strict=True)), path)


def _read_saved(source: DataSource) -> Table:
    datasets = require("datasets", extra="hf")
    found = datasets.load_from_disk(str(source.path))
    if isinstance(found, datasets.DatasetDict):
        if source.part not in found:
            raise TaskError(
                f"{source.path} holds the parts {', '.join(found)}; say which: "
                f"{{data: {source.path.name}, part: {next(iter(found))}}}"
            )
        found = found[source.part]
    columns = {name: list(found[name]) for name in found.column_names}
    for name, feature in found.features.items():
        if isinstance(feature, datasets.ClassLabel):
            # The names are what people check; -1 marks a hidden label and is refused later.
            columns[name] = [feature.names[i] if i >= 0 else i for i in columns[name]]
    return Table(str(source.path), columns, source.path)
