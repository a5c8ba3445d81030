from __future__ import annotations

from typing import Any

import pytest

from stockpot.errors import ReportError
from stockpot.report import load, render, save
from stockpot.report.from_curves import curves_report
from stockpot.report.model import scatter

ROLES = {"val": "held-out", "test": "test", "noise": "shift", "blur": "shift"}


def score(value: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "n": 100,
        "metric": "accuracy",
    }


def scores(value: float) -> dict[str, Any]:
    return {name: score(value) for name in (*ROLES, "shift_average")}


def gain(difference: float, *, noise: bool) -> dict[str, Any]:
    return {"difference": difference, "low": difference - 0.01, "high": difference + 0.01,
            "p_value": 0.2, "within_noise": noise}  # fmt: skip


def told(alpha: float = 0.25) -> dict[str, Any]:
    curve = [{"alpha": a, "scores": scores(0.6 + a / 5)} for a in (0.0, 0.25, 0.5, 1.0)]
    by_split = {"test": gain(-0.002, noise=True), "shift_average": gain(0.034, noise=False)}
    return {
        "curve": curve,
        "chosen": {"alpha": alpha, "scores": scores(0.65)},
        "half": curve[2],
        "best": {
            name: {"alpha": 0.5, "value": 0.7, "above_ends": 0.0}
            for name in (*ROLES, "shift_average")
        },
        "ensemble": [{"alpha": 0.5, "scores": scores(0.71)}],
        "gains": {"base": by_split, "tuned": by_split},
        "alpha": alpha,
        "recipe": {"name": "wise-ft"},
        "selected": [],
        "coefficients": {},
        "steps": [],
        "scores": {},
        "examples_evaluated": 0,
        "examples_plain": 0,
        "rule": "best by the score on val; ties to the α nearest 0.5",
        "chosen_on": "val",
        "direction": "max",
        "notes": ["warning: something"],
    }


def report() -> Any:
    return curves_report(
        {"runs/a.safetensors": told(), "runs/b": told(0.5)}, base="b0", roles=ROLES
    )


def test_every_curve_is_a_line_of_the_one_scatter() -> None:
    chart = scatter(report())
    assert chart is not None
    assert [line.labels[1] for line in chart.lines] == [  # type: ignore[index]
        "α = 0.25, From the base to a", "α = 0.25, From the base to b",
    ]  # fmt: skip
    assert (chart.x.name, chart.y.name) == ("test (%)", "shift average (%)")


def test_models_are_the_ends_the_chosen_points_the_middles_and_the_ensembles() -> None:
    found = {model.name: model for model in report().models}
    assert list(found) == [
        "base", "a", "a, α = 0.25", "a, α = 0.5", "a, ensemble", "b", "b, α = 0.5", "b, ensemble",
    ]  # fmt: skip
    assert found["base"].scores["test"].value == 0.6
    assert found["a"].scores["test"].value == pytest.approx(0.8)
    assert found["a, ensemble"].kind == "ensemble"


def test_the_verdict_says_what_is_within_noise() -> None:
    text = " ".join(report().verdict)
    assert "a: α = 0.25 (best by the score on val" in text
    assert "test −0.2 [−1.2, +0.8], within noise" in text
    assert "shift average +3.4 [+2.4, +4.4]." in text


def test_the_record_can_be_saved_loaded_and_made_a_page(tmp_path: Any) -> None:
    save(report(), tmp_path)
    assert load(tmp_path) == report()
    page = render(tmp_path).read_text()
    assert "From the base to what was tuned from it" in page


def test_tuned_models_of_one_name_are_told_apart_by_their_folders() -> None:
    found = curves_report({"x/a.pt": told(), "y/a.pt": told(0.5)}, base="b", roles=ROLES)
    assert [model.name for model in found.models][1::4] == ["x/a", "y/a"]


def test_a_soup_without_a_curve_is_refused_with_the_place() -> None:
    bare = {key: value for key, value in told().items() if key not in ("curve", "gains")}
    with pytest.raises(ReportError, match="has no curve"):
        curves_report({"a": bare}, base="b", roles=ROLES)
