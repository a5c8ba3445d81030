"""The small programs beside the library do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.report.example import example

from stockpot.report import save

ROOT = Path(__file__).parents[2]


def test_the_figure_of_the_readme_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SVG of its own, with both sets of colours, made from a demo's folder."""
    spec = importlib.util.spec_from_file_location("figure", ROOT / "scripts/demo_figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    save(example(), tmp_path)
    out = tmp_path / "img" / "demo.svg"
    monkeypatch.setattr(module, "OUT", out)
    monkeypatch.setattr("sys.argv", ["demo_figure.py", str(tmp_path)])
    assert module.main() == 0
    root = ET.fromstring(out.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in out.read_text()
