"""A record says the same after a round trip, and says why when it cannot be read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stockpot.errors import ReportError
from stockpot.report.records import (
    CurvePoint,
    CurveRecord,
    ModelRecord,
    Report,
    ScoreRecord,
    StepRecord,
    load,
    save,
)


def _report() -> Report:
    score = ScoreRecord(0.5, 0.25, 0.75, 8)
    return Report(
        title="Handwriting",
        verdict=("The soup is better than its best ingredient.",),
        chosen_on="held-out",
        reported_on=("test", "blur"),
        shifts=("blur",),
        headline=("base", "greedy"),
        models=(
            ModelRecord("base", "base", {"test": score, "blur": None}),
            ModelRecord(
                "run-00", "run", {"test": score}, hyperparameters={"lr": 0.001, "aug": None}
            ),
            ModelRecord("greedy", "soup", {"test": score}, "g.safetensors", {}, {"run-00": 1.0}),
        ),
        curves=(CurveRecord("run-00", (CurvePoint(0.0, {"test": score}),), chosen=0.0),),
        steps={"greedy": (StepRecord("run-00", True, 0.5), StepRecord("run-01", False, None, 0.4))},
        provenance={"seed": "0"},
        commands=("stockpot demo",),
        notes=("a note",),
    )


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    report = _report()
    path = save(report, tmp_path)
    assert path == tmp_path / "report.json"
    assert load(tmp_path) == report
    assert load(path) == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_integers_where_fractions_are_meant_are_read(tmp_path: Path) -> None:
    """Other programs write 1 for 1.0."""
    data = json.loads(save(_report(), tmp_path).read_text())
    data["models"][0]["scores"]["test"]["value"] = 1
    (tmp_path / "report.json").write_text(json.dumps(data))
    score = load(tmp_path).model("base").scores["test"]
    assert score is not None
    assert score.value == 1


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(
        _report(),
        models=(ModelRecord("base", "base", {"test": ScoreRecord(float("nan"))}),),
        headline=(),
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a record of stockpot"),
        ("[]", "names no format"),
        ('{"format": 99}', "newer stockpot"),
        ('{"format": 1}', "missing"),
        ('{"format": 1, "colour": 3}', "no field colour"),
        ('{"format": 1, "models": [3]}', "fields of ModelRecord"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=message):
        load(tmp_path)


def test_a_folder_without_a_record_says_which_folder_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"holds no report\.json: give the folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"headline": ("base", "learned")}, "without scores: learned"),
        ({"shifts": ("fog",)}, "not reported on: fog"),
        ({"models": _report().models + _report().models[:1]}, "same name"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ReportError, match=message):
        dataclasses.replace(_report(), **change)  # type: ignore[arg-type]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ReportError, match="no model 'learned'"):
        _report().model("learned")
