"""The page of corrections names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "corrections.md"


def test_every_item_of_the_page_has_tests_that_exist() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(("| A", "| B"))]
    assert {row.split(" | ")[0].strip("| ") for row in rows} == {
        *(f"A{i}" for i in range(1, 6)), *(f"B{i}" for i in range(1, 15)),
    }  # fmt: skip
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert all("::" in row for row in rows)
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []
