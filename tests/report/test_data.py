"""The numbers of a page as files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from stockpot.errors import OutputExistsError
from stockpot.report.data import table_to_csv, table_to_json, write_data
from stockpot.report.page import to_data
from stockpot.report.tables import Cell, Row, Table

from .example import example

TABLE = Table(
    ("score", "note", "n"),
    (
        Row("a, b", "run", (Cell("97.8", "0.97812345"), Cell("fine", "fine"), Cell("3", "3"))),
        Row("c", "run", (Cell("–", ""), Cell("", ""), Cell("-2", "-2"))),
    ),
)


def test_csv_has_all_digits_and_leaves_missing_values_empty() -> None:
    rows = list(csv.reader(io.StringIO(table_to_csv(TABLE, first="model"))))
    assert rows == [
        ["model", "score", "note", "n"],
        ["a, b", "0.97812345", "fine", "3"],
        ["c", "", "", "-2"],
    ]


def test_json_has_numbers_text_and_null() -> None:
    assert table_to_json(TABLE) == [
        {"name": "a, b", "score": 0.97812345, "note": "fine", "n": 3},
        {"name": "c", "score": None, "note": None, "n": -2},
    ]


def test_every_score_of_the_record_is_in_the_files(tmp_path: Path) -> None:
    report = example()
    written = write_data(to_data(report), tmp_path)
    assert {path.stem for path in written} == {
        "scores", "models", "coefficients", "files", "scatter", "curve-1", "curve-2",
        "path-greedy", "coefficients-learned", "phases",
    }  # fmt: skip
    found = {row["name"]: row for row in json.loads((tmp_path / "scores.json").read_bytes())}
    for name in report.headline:
        for split, score in report.model(name).scores.items():
            assert score is not None
            assert found[name][split.replace("_", " ")] == score.value
    with pytest.raises(OutputExistsError):
        write_data(to_data(report), tmp_path)
