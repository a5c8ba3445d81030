"""Tables for people and programs: text, CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
import re

from stockpot._figures import Column, Estimate, Row, Table
from stockpot._markdown import escape_markdown
from stockpot.report.page import to_card
from stockpot.report.tables import as_text, to_csv, to_markdown, to_rows

from .example import example

TABLE = Table(
    name="t",
    title="T",
    columns=(Column(name="score", percent=True), Column(name="note"), Column(name="n")),
    rows=(
        Row(name="a, b", cells=(Estimate(value=0.97812345, low=0.97, high=0.985), "fine", 3)),
        Row(name="c", cells=(None, "", -2)),
        Row(name="d", cells=(Estimate(value=0.5), True, 0.123456), role="ensemble"),
    ),
)


def test_cells_are_text_with_the_interval_and_what_they_sort_by() -> None:
    cells = [row.cells for row in as_text(TABLE, higher_is_better=True)]
    assert cells[0][0] == ("97.8", "0.97812345", "97.0–98.5", False)
    assert cells[1][0] == ("–", "", "", False)
    assert [cell.text for cell in cells[2]] == ["50.0", "yes", "0.1235"]


def test_the_best_of_several_is_marked() -> None:
    rows = tuple(Row(name=n, cells=(Estimate(value=v),)) for n, v in (("a", 0.1), ("b", 0.2)))
    table = Table(name="t", title="T", columns=TABLE.columns[:1], rows=rows)
    assert [r.cells[0].best for r in as_text(table, higher_is_better=True)] == [False, True]
    assert [r.cells[0].best for r in as_text(table, higher_is_better=False)] == [True, False]
    assert [r.cells[0].best for r in as_text(table)] == [False, False]


def test_csv_has_all_digits_and_leaves_missing_values_empty() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows == [
        ["name", "score", "note", "n"],
        ["a, b", "0.97812345", "fine", "3"],
        ["c", "", "", "-2"],
        ["d", "0.5", "True", "0.123456"],
    ]


def test_json_has_numbers_text_and_null() -> None:
    assert to_rows(TABLE)[:2] == [
        {"name": "a, b", "score": 0.97812345, "note": "fine", "n": 3},
        {"name": "c", "score": None, "note": "", "n": -2},
    ]


def test_markdown_tables_have_one_line_for_each_row() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "| model | score | note | n |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| a, b | 97.8 (97.0–98.5) | fine | 3 |"


def test_nothing_in_a_card_is_markup() -> None:
    hostile = (
        "<img src=x onerror=alert(1)> [a](javascript:b) `c` **d** http://e\n# f | &lt;g @h\x07"
    )
    text = escape_markdown(hostile)
    assert "<" not in text
    assert "\n" not in text
    assert not re.search(r"(?<!\\)[`*_\[\]|]|(?<![\\&])#", text)
    assert "://" not in text
    assert "&amp;lt;" in text
    for start in ("- a", "+ a", "1. a", "# a", "> a", "= a", "1) a", "    a"):
        assert not re.match(r"\s|[-+#>=]|\d+[.)]", escape_markdown(start)), start


def test_a_card_has_the_verdict_the_scores_and_where_they_come_from() -> None:
    card = to_card(example())
    assert card.splitlines()[0] == "# Handwriting"
    assert "The greedy soup of 4 of 12 runs reads 97.9 % of the test digits." in card
    assert "| greedy | 98.2 (97.1–99.3) |" in card
    assert "## Where this comes from" in card
    assert "    stockpot demo -o stockpot-demo --seed 0" in card
