"""The pictures of docs/gallery.md are made by a script, each a file that stands alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.report.example import example

from stockpot.report import save

ROOT = Path(__file__).parents[2]


def test_every_figure_of_a_record_becomes_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "scripts/gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    save(example(), tmp_path)
    monkeypatch.setattr(module, "OUT", tmp_path / "img")
    monkeypatch.setattr("sys.argv", ["gallery.py", str(tmp_path)])
    assert module.main() == 0
    found = {path.stem for path in (tmp_path / "img").iterdir()}
    assert found == {
        "gains", "scatter", "curve-1", "curve-2", "path", "coefficients-by-group", "phases",
        "landscape", "barriers", "angles", "contributions",
    }  # fmt: skip
    for path in (tmp_path / "img").iterdir():
        assert ET.fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
