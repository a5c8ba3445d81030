"""Pages of what commands recorded: every record is rendered, with the numbers that were printed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from stockpot._figures import Heatmap, IntervalChart, LineChart, ScatterChart, Table
from stockpot.errors import ReportError
from stockpot.report import open_report, render, save
from stockpot.report.from_results import next_steps, page_beside, soup_report, sweep_report
from stockpot.report.model import lead_chart
from stockpot.report.page import to_html

from .example import example

ROLES = {"val": "held-out", "test": "test", "blur": "shift", "noise": "shift"}


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 500,
            "metric": "accuracy"}  # fmt: skip


def scores(value: float) -> dict[str, Any]:
    values = {split: score(value - i / 50) for i, split in enumerate(ROLES)}
    return {**values, "shift_average": {**score(value - 0.05), "n": 1000}}


def record(recipe: str, **told: Any) -> dict[str, Any]:
    paths = [f"/runs/run-{i:02d}.safetensors" for i in range(3)]
    return {
        "stockpot": "0.1.0",
        "ingredients": [
            {"path": path, "fingerprint": f"{i}" * 32, "coefficient": None}
            for i, path in enumerate(paths)
        ],
        "base": {"path": "/base.safetensors", "fingerprint": "b" * 32},
        "output": "f" * 32,
        "mixing": {"by": "model", "vectors": {"": [0.5, 0.5, 0.0]}},
        "soup": {
            "recipe": {"name": recipe, "seed": 0, "nothing": None},
            "selected": paths[:2],
            "coefficients": dict.fromkeys(paths[:2], 0.5),
            "steps": [],
            "scores": scores(0.95),
            "direction": "max",
            "chosen_on": "val",
            "examples_evaluated": 0,
            "examples_plain": 0,
            "notes": ["a note"],
            "roles": ROLES,
            **told,
        },
    }


def step(number: int, *, accepted: bool = True, **told: Any) -> dict[str, Any]:
    return {
        "candidate": f"/runs/run-{number:02d}.safetensors", "accepted": accepted, "score": 0.95,
        "score_at_most": None, "p_value": None, "examples": 500, "within_noise": None,
        "reason": "", **told,
    }  # fmt: skip


CURVE = [{"alpha": a, "scores": scores(0.9 + a / 20)} for a in (0.0, 0.5, 1.0)]
GROUPS = {"layer.0": {"/runs/run-00.safetensors": 0.25, "/runs/run-01.safetensors": 0.75}}
PHASE = {
    "sparsity": 0.9, "scores": scores(0.93),
    "candidates": [
        {"path": f"/p/candidate-{i}.safetensors", "scores": scores(0.92)} for i in (0, 1)
    ],
}  # fmt: skip
RECORDS = {
    "uniform": record("uniform"),
    "greedy": record(
        "greedy",
        steps=[
            step(0, reason="first"),
            step(1, p_value=0.4, within_noise=True),
            step(2, accepted=False, score=None, score_at_most=0.94),
        ],
        singles={f"/runs/run-{i:02d}.safetensors": 0.9 + i / 100 for i in range(3)},
    ),
    "pruned": record("pruned", steps=[step(2)]),
    "wise-ft": record("wise-ft", alpha=0.5, curve=CURVE, rule="best on val"),
    "mine": record("mine", coefficients=GROUPS),
    "auto": record(
        "auto",
        chosen="uniform",
        table=[
            {"recipe": name, "scores": scores(0.9), "coefficients": None, "p_value": p}
            for name, p in (("best-single", 1.0), ("uniform", 0.2), ("ensemble", None))
        ],
    ),
    "sparse": record(
        "sparse",
        phases=[PHASE, {**PHASE, "sparsity": 0.95}],
        sparsity=0.95,
        baselines={
            name: {"scores": scores(0.9), "sparsity": 0.95, "epochs": 9, "models": 1}
            for name in ("dense", "soup", "imp", "ensemble")
        },
    ),
    "zoo": record(
        "zoo",
        chosen_on=None,
        models=["/zoo/print.pt", "/zoo/letters.pt"],
        gates={"10": [0.5, 0.25], "2": [0.75, 0.125]},
        fresh=["12.weight"],
        epochs=[],
    ),
}


def test_the_page_of_zoo_tuning_maps_the_gates_of_each_layer() -> None:
    report = soup_report(RECORDS["zoo"], name="adapted.safetensors")
    assert report.title == "Zoo-Tuning: adapted.safetensors"
    (gates,) = (figure for figure in report.figures if isinstance(figure, Heatmap))
    assert gates.rows == ("2", "10")
    assert gates.columns == ("print", "letters")
    assert gates.values == ((0.75, 0.125), (0.5, 0.25))
    assert "began at 0.50" in gates.explanation
    assert any("12.weight" in sentence for sentence in report.verdict)
    html = to_html(report)
    assert "Gates of each layer" in html
    assert "0.125" in html
    damaged = copy.deepcopy(RECORDS["zoo"])
    damaged["soup"]["gates"]["2"] = [0.75]
    with pytest.raises(ReportError, match="does not fit together"):
        soup_report(damaged)


def test_a_shift_that_the_average_leaves_out_is_named() -> None:
    told = record("auto", **{k: v for k, v in RECORDS["auto"]["soup"].items() if k != "recipe"})
    told["soup"]["not_averaged"] = ["noise"]
    report = soup_report(told, name="out.safetensors")
    assert report.shifts == ("blur",)
    assert report.reported_on == ("test", "blur", "noise")
    (note,) = (note for note in report.notes if "leaves" in note)
    assert note == "The average over shifts leaves noise out (1 of 2 shifts are in it)."
    assert note in to_html(report)
    assert not any("leaves" in n for n in soup_report(RECORDS["auto"], name="out").notes)


@pytest.mark.parametrize("recipe", RECORDS)
def test_every_recipe_has_a_page_with_its_numbers(recipe: str) -> None:
    report = soup_report(RECORDS[recipe], name="out.safetensors")
    assert report.chosen_on == "val"
    assert report.reported_on == ("test", "blur", "noise")
    assert report.shifts == ("blur", "noise")
    assert "which had no part in the choice." in report.verdict[-1]
    html = to_html(report)
    if "table" not in RECORDS[recipe]["soup"]:
        for value in RECORDS[recipe]["soup"]["scores"].values():
            assert f'data-value="{value["value"]!r}"' in html
    assert "a note" in html
    assert "f" * 32 in html
    assert "nothing" not in html


def test_verdicts_say_what_was_decided_and_what_is_within_noise() -> None:
    assert soup_report(RECORDS["greedy"]).verdict[:2] == (
        "The greedy soup keeps 2 of 3.",
        "Of 1 accepted steps, 1 are within noise.",
    )
    assert "uniform was chosen on val" in soup_report(RECORDS["auto"]).verdict[0]
    assert soup_report(RECORDS["sparse"]).verdict[0] == (
        "95.00 % of the prunable weights are zero, after 2 phases."
    )


def test_the_gain_is_the_first_sentence_and_the_chart_that_leads() -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    on_test = {"difference": 0.02, "low": 0.003, "high": 0.037, "p_value": 0.02}
    on_blur = {"difference": 0.05, "low": None, "high": None, "p_value": None}
    told["soup"]["gain"] = {
        "model": "/runs/run-01.safetensors", "splits": {"test": on_test, "blur": on_blur},
        "is_same": False, "reason": "",
    }  # fmt: skip
    report = soup_report(told)
    assert report.verdict[0] == "GAIN +2.0 points on test (0.3 to 3.7) over run-01"
    chart = lead_chart(report)
    assert isinstance(chart, IntervalChart)
    assert chart.title == "Gain over run-01"
    assert [name for name, _ in chart.rows] == ["test", "blur"]
    told["soup"]["gain"]["splits"]["test"]["low"] = "low"
    with pytest.raises(ReportError, match=r"gain\.splits\.test\.low: expected"):
        soup_report(told)


def test_a_soup_that_is_the_best_single_run_has_no_chart_of_zeros() -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    zero = {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    told["soup"]["gain"] = {
        "model": "/runs/run-01.safetensors", "splits": {"test": zero}, "is_same": True,
        "reason": "",
    }  # fmt: skip
    report = soup_report(told)
    assert report.verdict[0] == "NO GAIN: the soup is run-01"
    assert report.gains == ()


def test_ingredients_have_the_scores_that_choosing_knew() -> None:
    report = soup_report(RECORDS["greedy"])
    found = report.model("run-02").scores["val"]
    assert found is not None
    assert (found.value, found.low) == (0.92, None)
    assert report.model("run-02").fingerprint == "2" * 32


def test_paths_as_given_and_in_full_are_one_model(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = copy.deepcopy(RECORDS["greedy"])
    for i, one in enumerate(told["ingredients"]):
        one["path"] = str(tmp_path / f"runs/run-{i:02d}.safetensors")
    soup = told["soup"]
    for key in ("coefficients", "singles"):
        soup[key] = {path.removeprefix("/"): value for path, value in soup[key].items()}
    report = soup_report(told)
    assert report.model("run-01").scores["val"].value == 0.91  # type: ignore[union-attr]
    assert report.model("greedy").coefficients == {"run-00": 0.5, "run-01": 0.5}


def test_a_sweep_s_records_beside_the_runs_are_used(tmp_path: Path) -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    told["ingredients"][0]["path"] = str(tmp_path / "run-00.safetensors")
    run = {"scores": scores(0.91), "hyperparameters": {"lr": 0.001}}
    (tmp_path / "run-00.json").write_text(json.dumps(run))
    model = soup_report(told).model("run-00")
    assert model.hyperparameters == {"lr": 0.001}
    assert model.scores["test"].value == scores(0.91)["test"]["value"]  # type: ignore[union-attr]


def test_curves_phases_and_shares_by_group_are_taken_over() -> None:
    wise = soup_report(RECORDS["wise-ft"])
    assert wise.headline == ("wise-ft", "base", "tuned", "α = 0.5")
    curve, table = wise.figures
    assert isinstance(table, Table)
    assert isinstance(curve, LineChart)
    assert curve.rules[0].value == 0.5
    assert [line.name for line in curve.lines] == ["val", "test", "shift average"]
    (heat,) = soup_report(RECORDS["mine"]).figures
    assert isinstance(heat, Heatmap)
    assert (heat.rows, heat.columns) == (("layer.0",), ("run-00", "run-01"))
    assert heat.values == ((0.25, 0.75),)
    sparse = soup_report(RECORDS["sparse"])
    (phases,) = sparse.figures
    assert isinstance(phases, ScatterChart)
    assert {point.x for point in phases.points} == {0.9, 0.95}
    assert sparse.headline == ("sparse", "dense", "imp", "ensemble")
    assert sparse.model("ensemble").kind == "ensemble"


def test_decisions_are_a_chart_and_a_table() -> None:
    path, table = soup_report(RECORDS["greedy"]).figures
    assert isinstance(path, ScatterChart)
    assert isinstance(table, Table)
    assert [point.role for point in path.points] == ["accepted", "accepted", "bound"]
    assert [row.name for row in table.rows] == ["run-00", "run-01", "run-02"]


def test_what_is_not_there_is_named_as_by_other_commands(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"^there is nothing at .*/nope$"):
        open_report(tmp_path / "nope")
    with pytest.raises(ReportError, match="give what a command of stockpot wrote"):
        open_report(tmp_path)


def test_next_steps_are_commands_for_what_is_there(tmp_path: Path) -> None:
    steps = next_steps("out/soup.safetensors.stockpot.json")
    assert steps[0].command == "stockpot verify out/soup.safetensors"
    (tmp_path / "soups").mkdir()
    (tmp_path / "soups" / "greedy.safetensors").touch()
    (tmp_path / "report.json").write_text('{"chosen": "../greedy"}')
    assert len(next_steps(tmp_path)) == 1
    (tmp_path / "report.json").write_text('{"chosen": "greedy"}')
    commands = [step.command for step in next_steps(tmp_path)]
    assert commands[0] == f"stockpot verify {tmp_path}/soups/greedy.safetensors"
    (tmp_path / "report.json").unlink()
    (tmp_path / "run-00.json").write_text("{}")
    assert next_steps(tmp_path)[0].command.startswith(f"stockpot auto {tmp_path} ")
    (tmp_path / "soup").mkdir()
    (tmp_path / "soup" / "config.json").write_text(
        '{"architectures": ["ViTForImageClassification"]}'
    )
    load = next_steps(tmp_path / "soup")[-1].command
    assert load == f'ViTForImageClassification.from_pretrained("{tmp_path}/soup")'
    for name in ("a;rm -rf ~", "a\nb", "$(x)", "-rf", "a'b", 'a"b', "a`b`", "a|b"):
        assert next_steps(name) == ()


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("scores", {"val": {"value": "high"}}, r"scores\.val\.value: expected a number"),
        ("steps", [{}], r"steps\[0\] lacks 'candidate'"),
        ("coefficients", {"a": "x"}, r"coefficients\.a"),
        ("recipe", {}, r"recipe\.name: expected text"),
        ("roles", {"val": "king"}, r"roles\.val: expected one of"),
        ("direction", None, "direction: expected one of max, min"),
        ("notes", "text", "notes: expected a list"),
        ("singles", [], "singles: expected an object"),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(key: str, value: Any, place: str) -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    told["soup"][key] = value
    with pytest.raises(ReportError, match=place):
        soup_report(told)


def test_roles_are_guessed_where_the_record_does_not_say_them() -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    del told["soup"]["roles"]
    assert soup_report(told).shifts == ("blur", "noise")
    told["soup"]["scores"] = {"val": score(0.9), "private": score(0.8)}
    assert soup_report(told).reported_on == ("private",)


def test_without_a_test_the_verdict_says_so() -> None:
    told = copy.deepcopy(RECORDS["greedy"])
    told["soup"]["scores"] = {"val": score(0.9)}
    told["soup"]["roles"] = {"val": "held-out"}
    assert "nothing independent was measured" in soup_report(told).verdict[-1]


def test_soups_folders_records_and_sweeps_are_opened(tmp_path: Path) -> None:
    beside = tmp_path / "soup.safetensors.stockpot.json"
    beside.write_text(json.dumps(RECORDS["greedy"]))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "stockpot.json").write_text(json.dumps(RECORDS["uniform"]))
    assert open_report(tmp_path / "soup.safetensors") == open_report(beside)
    assert open_report(tmp_path / "folder").title == "Uniform soup: folder"
    save(example(), tmp_path / "folder")
    assert open_report(tmp_path / "folder") == example()
    assert render(beside) == tmp_path / "soup.report.html"
    assert page_beside(tmp_path / "folder") == tmp_path / "folder" / "report.html"


def test_a_sweep_has_its_runs_and_their_range(tmp_path: Path) -> None:
    for i in range(7):
        run = {
            "name": f"run-{i:02d}", "path": f"run-{i:02d}.safetensors",
            "scores": scores(0.9 + i / 100),
            "hyperparameters": {"lr": i / 1000}, "fingerprint": "a", "environment": {"torch": "2"},
        }  # fmt: skip
        (tmp_path / f"run-{i:02d}.json").write_text(json.dumps(run))
    (tmp_path / "run-07.json").write_text(json.dumps({"name": "run-07", "scores": None}))
    report = open_report(tmp_path)
    assert report.headline == ("run-06", "run-05", "run-04", "run-03", "run-02")
    assert report.verdict[0] == (
        "7 runs were fine-tuned from one base; 1 failed or were not scored."
    )
    assert "90.0 % (89.0–91.0) (run-00) to 96.0 %" in report.verdict[1]
    assert "run-00" in to_html(report)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="give what a command of stockpot wrote"):
        open_report(tmp_path)
    (tmp_path / "stockpot.json").write_text("[]")
    with pytest.raises(ReportError, match="no JSON object"):
        open_report(tmp_path)
    (tmp_path / "stockpot.json").write_text("{")
    with pytest.raises(ReportError, match="cannot be read"):
        open_report(tmp_path)
    for broken in ({}, {"soup": {}}, {**RECORDS["greedy"], "ingredients": 3}):
        with pytest.raises(ReportError, match="no record of a soup"):
            soup_report(broken)
    unscored = copy.deepcopy(RECORDS["uniform"])
    unscored["soup"]["scores"] = {}
    with pytest.raises(ReportError, match="nothing was scored"):
        soup_report(unscored)
    with pytest.raises(ReportError, match="no run of the sweep was scored"):
        sweep_report([{"scores": None}])
    with pytest.raises(ReportError, match="damaged"):
        sweep_report([{"scores": {"val": 3}}])
