"""What a result holds and shows, read again from records old and new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stockpot.errors import VerificationError
from stockpot.formats.table import record_path
from stockpot.recipes import Auto, BestSingle, Details, Greedy, Pruned, Soup, Trajectory, Uniform
from stockpot.recipes.auto_details import AutoDetails
from stockpot.recipes.record import SoupRecord
from stockpot.recipes.result import RecordedDetails, ScoredModel
from stockpot.recipes.selection import GreedyDetails, SelectionDetails


def recorded(soup: Soup, folder: Path) -> SoupRecord:
    soup.save(folder / "soup.safetensors")
    return SoupRecord.read(folder / "soup.safetensors")


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (Uniform(), Details),
        (BestSingle(), Details),
        (Greedy(curve=2, random_orders=2), GreedyDetails),
        (Pruned(), SelectionDetails),
        (Auto(learned=False, alphas=(0.5,)), AutoDetails),
    ],
)
def test_a_record_gives_back_the_summary_without_the_ingredients(lab, tmp_path, recipe, kind):
    soup = recipe.cook(lab.paths[:4], lab.task, base=lab.base)
    summary = recorded(soup, tmp_path).summary
    assert type(summary.details) is kind
    assert summary.details == soup.details
    assert summary.to_json() == soup.to_json()
    assert list(summary.scores) == ["held-out", "test", "noise", "shifted", "shift_average"]
    assert [one.name for one in summary.tables()] == [one.name for one in soup.tables()]
    assert [one.name for one in summary.figures()] == [one.name for one in soup.figures()]


@pytest.mark.parametrize("recipe", [BestSingle(), Uniform(top=2)])
def test_the_split_that_ranked_is_said_to_have_chosen(lab, tmp_path, recipe):
    soup = recipe.cook(lab.paths, lab.task)
    assert soup.chosen_on == "held-out"
    soup.save(tmp_path / "soup")
    card = (tmp_path / "soup" / "README.md").read_text()
    assert "held-out (chose)" in card
    assert "chose the ingredients: its score is too good" in card


def test_an_auto_that_the_best_single_wins_says_what_chose(lab, tmp_path):
    soup = Auto(learned=False, ensembles=False).cook([lab.paths[0]], lab.task)
    assert soup.details.chosen == "best-single"
    assert soup.chosen_on == "held-out"
    assert "(chose)" in json.dumps(soup.record()) or recorded(soup, tmp_path).summary.chosen_on


def test_what_only_averages_says_that_nothing_chose(lab):
    assert Uniform().cook(lab.paths, lab.task).chosen_on is None


def test_the_table_of_steps_has_a_row_for_each_and_the_bounds_of_the_early_ones(lab):
    soup = Greedy().cook(lab.paths, lab.task)
    scores, steps = soup.tables({lab.paths[0]: "first"})
    assert [row.name for row in scores.rows] == ["best-single", "greedy"]
    assert len(steps.rows) == len(soup.steps)
    assert "first" in [row.name for row in steps.rows]
    early = [step.score is None for step in soup.steps]
    assert [str(row.cells[0]).startswith("≤") for row in steps.rows] == early
    (chart,) = soup.figures()
    assert {point.group for point in chart.points} >= {"accepted"}


def test_the_rows_of_auto_are_all_that_was_tried_and_one_is_chosen(lab):
    soup = Auto(learned=False, alphas=(0.5,)).cook(lab.paths[:3], lab.task, base=lab.base)
    models = soup.models()
    assert [m.name for m in models if m.chosen] == [soup.details.chosen]
    assert {m.role for m in models} == {"run", "soup", "wise-ft", "base", "ensemble"}
    assert all(isinstance(model, ScoredModel) for model in models)


def test_windows_are_listed_best_first(tmp_path, lab):
    soup = Trajectory(decays=()).cook(lab.paths[:4], lab.task)
    windows = next(table for table in soup.tables() if table.name == "windows")
    values = [row.cells[-1] for row in windows.rows]
    assert values == sorted(values, reverse=True)
    assert sum(row.chosen for row in windows.rows) == 1


def test_details_of_a_strange_recipe_are_kept_as_they_are(lab, tmp_path):
    path = tmp_path / "soup.safetensors"
    Uniform().cook(lab.paths[:2], lab.task).save(path)
    beside = record_path(path)
    record = json.loads(beside.read_text())
    record["soup"]["recipe"] = {"name": "from-outside", "places": 3}
    record["soup"]["medals"] = ["gold"]
    beside.write_text(json.dumps(record))
    soup = Soup.load(path)
    assert (soup.recipe, soup.options) == ("from-outside", {"places": 3})
    assert soup.details == RecordedDetails(data={"medals": ["gold"]})
    assert soup.to_json()["medals"] == ["gold"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ingredients": 3}, r"ingredients: expected a list"),
        ({"ingredients": [{"path": "a"}]}, r"ingredients\[0\] lacks 'fingerprint'"),
        ({"soup": None}, "soup: expected an object"),
        ({"mask": {"fingerprint": 1}}, "mask"),
    ],
)
def test_a_damaged_record_says_where(lab, tmp_path, change, message):
    path = tmp_path / "soup.safetensors"
    Uniform().cook(lab.paths[:2]).save(path)
    beside = record_path(path)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(VerificationError, match=message):
        Soup.load(path)


def test_a_damaged_summary_is_refused(lab, tmp_path):
    path = tmp_path / "soup.safetensors"
    Uniform().cook(lab.paths[:2]).save(path)
    beside = record_path(path)
    record = json.loads(beside.read_text())
    del record["soup"]["selected"]
    beside.write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="damaged"):
        Soup.load(path)
