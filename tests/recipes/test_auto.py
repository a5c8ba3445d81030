from __future__ import annotations

import pytest

from stockpot.errors import RecipeError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import Auto, Greedy, Uniform


def test_keeps_the_best_held_out_score_of_the_table(lab):
    soup = Auto(alphas=(0.5,)).cook(lab.paths, lab.task, base=lab.base)
    rows = {row["recipe"]: row for row in soup.details.to_json()["table"]}
    choosable = [row for row in rows.values() if row["chosen_from"]]
    best = max(row["scores"]["held-out"]["value"] for row in choosable)
    assert rows[soup.details.to_json()["chosen"]]["scores"]["held-out"]["value"] == best
    assert soup.scores["held-out"].value == best


def test_the_table_holds_recipes_and_baselines_with_every_split(lab):
    soup = Auto(alphas=(0.5,)).cook(lab.paths, lab.task, base=lab.base)
    names = [row["recipe"] for row in soup.details.to_json()["table"]]
    assert names == [
        "best-single", "uniform", "wise-ft", "wise-ft-uniform", "greedy", "wise-ft-greedy",
        "pruned", "wise-ft-pruned", "learned", "base", "ensemble", "greedy-ensemble",
    ]  # fmt: skip
    for row in soup.details.to_json()["table"]:
        assert set(row["scores"]) == {"held-out", "test", "noise", "shifted", "shift_average"}
    assert soup.details.to_json()["table"][-2]["models"] == 8
    assert soup.details.to_json()["table"][0]["p_value"] == 1


def test_rows_agree_with_the_recipes_alone(lab):
    evaluator = TaskEvaluator(lab.task)
    rows = {
        row["recipe"]: row
        for row in Auto().cook(lab.paths, lab.task, evaluator=evaluator).details.to_json()["table"]
    }
    for name, recipe in (("greedy", Greedy()), ("uniform", Uniform())):
        soup = recipe.cook(lab.paths, lab.task)
        assert rows[name]["scores"]["test"]["value"] == soup.scores["test"].value
        assert rows[name]["coefficients"] == soup.coefficients


def test_without_a_base_there_is_no_wise_ft(lab):
    soup = Auto(ensembles=False).cook(lab.paths, lab.task, report=False)
    names = [row["recipe"] for row in soup.details.to_json()["table"]]
    assert names == ["best-single", "uniform", "greedy", "pruned", "learned"]


def test_a_learned_soup_is_left_out_on_request(lab):
    soup = Auto(ensembles=False, learned=False).cook(lab.paths, lab.task, report=False)
    assert "learned" not in [row["recipe"] for row in soup.details.to_json()["table"]]


def test_ties_go_to_the_simpler(lab):
    soup = Auto(alphas=(0.5,)).cook(lab.paths[:1], lab.task)
    assert soup.details.to_json()["chosen"] == "best-single"


def test_prefer_simple_takes_the_simplest_within_noise(lab):
    soup = Auto(prefer="simple").cook(lab.paths, lab.task, report=False)
    rows = [row for row in soup.details.to_json()["table"] if row["chosen_from"]]
    assert [r["recipe"] for r in rows].index(soup.details.to_json()["chosen"]) <= 2
    with pytest.raises(RecipeError, match="score or simple"):
        Auto(prefer="cheap").cook(lab.paths, lab.task)


def test_optimism_is_reported(lab):
    found = Auto().cook(lab.paths, lab.task, report=False).details.to_json()["optimism"]
    assert found["low"] <= found["value"] <= found["high"]
    assert found["candidates"] == 5
