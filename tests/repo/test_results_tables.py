"""The tables of the results are those of the data beside them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from experiments import claims

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "results"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("_results", ROOT / "scripts/results_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_table_differs_from_its_data() -> None:
    module = script()
    make = module.tables()
    for page in PAGES.glob("*.md"):
        assert module.filled(page.read_text(), PAGES / "data", make) == page.read_text(), page


def test_every_file_of_data_says_what_made_it_and_stands_on_a_page() -> None:
    shown = {
        name
        for page in PAGES.glob("*.md")
        for _, name, _ in script().PART.findall(page.read_text())
    }
    # The table of claims is made of several.
    shown |= {finding.data for claim in claims.CLAIMS for finding in claim.findings}
    for file in (PAGES / "data").glob("*.json"):
        told = json.loads(file.read_text())
        assert file.stem in shown
        assert all(re.match(r"python -m experiments\.\w+ ", line) for line in told["commands"])
        assert re.search(r"\d{4}-\d\d-\d\d", told["hardware"])
        assert re.search(r"torch \d", told["hardware"])


def test_a_page_is_filled_and_filling_again_changes_nothing(tmp_path: Path) -> None:
    told = {"commands": ["python -m experiments.x"], "hardware": "two cores", "found": [1, 2]}
    (tmp_path / "x-y.json").write_text(json.dumps(told))
    module = script()
    make = {"x": lambda found: f"| {sum(found)} |"}
    page = "before\n<!-- table x-y -->\nold\n<!-- end -->\nafter\n"
    once = module.filled(page, tmp_path, make)
    assert "$ python -m experiments.x\n" in once
    assert "| 3 |\n<!-- end -->\nafter" in once
    assert "old" not in once
    assert module.filled(once, tmp_path, make) == once
    assert module.rounded({"a": [0.12345678, 1, "x"]}) == {"a": [0.123457, 1, "x"]}
