"""The small programs beside the library do what they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests.report.example import example

from stockpot.report import save

ROOT = Path(__file__).parents[2]


def load(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"_{script}", ROOT / "scripts" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    spec.loader.exec_module(module)
    return module


def test_the_figure_of_the_readme_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SVG of its own, with both sets of colours, made from a demo's folder."""
    module = load("demo_figure.py")
    save(example(), tmp_path)
    out = tmp_path / "img" / "demo.svg"
    monkeypatch.setattr(module, "OUT", out)
    monkeypatch.setattr("sys.argv", ["demo_figure.py", str(tmp_path)])
    assert module.main() == 0
    root = ET.fromstring(out.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in out.read_text()


def test_the_figures_of_interpolation_are_made_from_what_the_experiment_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("wise_ft_figures.py")

    def scores(value: float) -> dict[str, Any]:
        return {name: {"value": value} for name in ("held-out", "test", "shift_average")}

    curve = [{"alpha": a, "scores": scores(0.5 + a / 4)} for a in (0.0, 0.5, 1.0)]
    point = {"test": 0.7, "shift": 0.6, "rho": 0.05, "inside": True}
    one = {
        "experiment": "lab",
        "splits": [["held-out", "held-out"], ["test", "test"], ["noise", "shift"]],
        "tuned": {"best single": {"curve": curve, "alpha": 0.5}},
        "robustness": {
            "baselines": [
                {"name": f"width 8, {e} epochs", "test": 0.6 + e / 50, "shift": 0.5 + e / 50}
                for e in range(4)
            ],
            "slope": 1.0,
            "intercept": -0.4,
            "models": dict.fromkeys(("zero-shot", "fine-tuned", "chosen α"), point),
        },
    }
    (tmp_path / "found.json").write_text(json.dumps([one, one]))
    monkeypatch.setattr(module, "OUT", tmp_path / "img")
    assert module.main([str(tmp_path / "found.json")]) == 0
    names = {path.name for path in (tmp_path / "img").iterdir()}
    assert names == {"wise-ft-b16.svg", "wise-ft-lab.svg", "wise-ft-lab-robustness.svg"}
    for name in names:
        assert ET.parse(tmp_path / "img" / name).getroot().tag.endswith("svg")
    drawn = module.mean_curve("lab", [one, one])
    assert [line.name for line in drawn.lines] == ["test", "shift average", "held-out"]
    assert drawn.lines[0].y == (0.5, 0.625, 0.75)


def test_a_picture_of_a_footgun_says_what_it_shows_in_light_and_dark() -> None:
    script = load("footgun_figures.py")
    rows = [[0.9, 0.5, 0.9], [0.8, 0.4, 1.0]]
    picture = script.Picture(
        "starts", script.BETWEEN, (0, 0.5, 1), {"one": rows, "two": rows[::-1]}
    )
    text = script.draw(picture)
    root = ET.fromstring(text)
    assert root.get("aria-label") == "Test accuracy against share of the second run: one and two"
    assert "prefers-color-scheme: dark" in text
    assert script.draw(picture) == text


def test_every_picture_of_a_footgun_lies_beside_its_numbers() -> None:
    script = load("footgun_figures.py")
    numbers = json.loads((ROOT / "docs/img/footguns.json").read_text())
    assert set(numbers) == set(script.PICTURES)
    for name, told in numbers.items():
        seeds = told["seeds"]
        assert all(len(rows) == len(seeds) for rows in told["lines"].values())
        assert all(len(row) == len(told["x"]) for rows in told["lines"].values() for row in rows)
        drawn = ET.fromstring((ROOT / f"docs/img/footgun-{name}.svg").read_text())
        assert " and ".join(told["lines"]) in str(drawn.get("aria-label"))


def test_the_page_of_formats_is_what_the_table_says() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    assert page == load("formats_table.py").page(), "run: make docs"
