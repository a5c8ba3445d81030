"""A report that stockpot 0.1 wrote still makes a page, with its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stockpot.errors import ReportError
from stockpot.report import load
from stockpot.report.page import to_html


def _score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9, "metric": "accuracy"}


def _scores(value: float) -> dict[str, Any]:
    return {s: _score(value) for s in ("val", "test", "blur", "noise", "shift_average")}


def old(**changed: Any) -> dict[str, Any]:
    """As stockpot 0.1 wrote it."""
    model = {"path": None, "hyperparameters": {"lr": 0.1}, "coefficients": {}, "fingerprint": None,
             "note": ""}  # fmt: skip
    step = {"score_at_most": None, "p_value": None, "reason": ""}
    return {
        "format": 1,
        "title": "Old",
        "verdict": ["It gains."],
        "chosen_on": "val",
        "reported_on": ["test", "blur", "noise"],
        "shifts": ["blur", "noise"],
        "headline": ["a", "dense"],
        "models": [
            {"name": "a", "kind": "run", "scores": _scores(0.5), **model},
            {"name": "dense", "kind": "base", "scores": _scores(0.6), **model},
        ],
        "curves": [
            {"name": "a", "points": [{"x": x, "scores": _scores(x / 2)} for x in (0, 0.5, 1)],
             "x_name": "α", "chosen": 0.5}
        ],
        "steps": {"greedy": [{"candidate": "a", "accepted": True, "score": 0.5, **step}]},
        "provenance": {"seed": "0"},
        "commands": ["stockpot demo"],
        "notes": [],
        "higher_is_better": True,
        "diagnosis": {},
        "mixing": {"learned": {"layer.10": {"a": 1.0}, "layer.2": {"a": 0.5, "b": 0.5}}},
        "phases": [
            {"sparsity": 0.5, "candidates": {"c": _scores(0.4)}, "soup": _scores(0.45)}
        ],
        **changed,
    }  # fmt: skip


def test_curves_decisions_coefficients_and_phases_become_figures(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(old()))
    report = load(tmp_path)
    names = [figure.name for figure in report.figures]
    assert names == ["curve-1", "path", "steps", "coefficients-by-group", "phases"]
    heat = report.figures[3]
    assert heat.rows == ("layer.2", "layer.10")  # type: ignore[union-attr]
    html = to_html(report)
    assert html.count("<svg") == 5
    assert "It gains." in html


def test_an_old_diagnosis_says_how_to_draw_its_figures_again(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(old(diagnosis={"verdict": {}})))
    assert "stockpot diagnose" in load(tmp_path).notes[-1]


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"curves": [{"name": "a"}]}, r"curves\[0\] lacks 'points'"),
        ({"steps": {"greedy": [3]}}, r"steps.greedy\[0\]"),
        ({"mixing": {"l": {"g": {"a": "x"}}}}, "mixing.l.g.a: expected a number"),
        ({"phases": 3}, "phases: expected a list"),
        ({"diagnosis": []}, "diagnosis: expected an object"),
    ],
)
def test_damage_is_named_by_its_place(changed: dict[str, Any], place: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(old(**changed)))
    with pytest.raises(ReportError, match=place):
        load(tmp_path)
