from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError, MismatchError, RecipeError
from stockpot.evaluate.callable import CallableEvaluator
from stockpot.evaluate.compare import difference
from stockpot.evaluate.splits import with_splits
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import (
    Auto,
    BestSingle,
    Greedy,
    Learned,
    ModelStock,
    Pruned,
    Slerp,
    Soup,
    TaskArithmetic,
    Uniform,
)
from stockpot.recipes.auto_details import AutoDetails
from stockpot.recipes.record import verify
from stockpot.report import open_report
from stockpot.report.page import to_html


def test_keeps_the_best_held_out_score_of_the_table(lab):
    soup = Auto(alphas=(0.5,), prefer="score").cook(lab.paths, lab.task, base=lab.base)
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


def test_the_simplest_within_noise_of_the_best_is_taken_unless_the_score_is_preferred(lab):
    evaluator = TaskEvaluator(lab.task)
    simple = Auto().cook(lab.paths, evaluator=evaluator, report=False)
    best = Auto(prefer="score").cook(lab.paths, evaluator=evaluator, report=False)
    assert (best.details.chosen, best.details.ahead) == (best.details.ahead, simple.details.ahead)
    rows = [row.recipe for row in simple.details.table if row.chosen_from]
    assert rows.index(simple.details.chosen) <= rows.index(best.details.chosen)
    soups = {
        "best-single": BestSingle(), "uniform": Uniform(), "greedy": Greedy(), "pruned": Pruned(),
    }  # fmt: skip
    winner = evaluator.predictions(best.scored_as, "held-out")
    for name in rows[: rows.index(simple.details.chosen)]:
        soup = soups[name].cook(lab.paths, evaluator=evaluator, report=False)
        other = evaluator.predictions(soup.scored_as, "held-out")
        assert not difference(winner, other, "held-out", seed=evaluator.seed).within_noise
    if simple.details.chosen != simple.details.ahead:
        assert any("--prefer score" in text for text in simple.details.sentences(simple))


def parts_of(task, share, *, seed=0):
    """The two parts of held-out, by the division that is documented for learned soups."""
    data = task.splits["held-out"].dataset
    n = len(data)
    order = np.random.default_rng(seed).permutation(n)
    cut = round(n * share)
    return [
        with_splits(task, {**task.splits, "held-out": Split(TensorDataset(*rows), role="held-out")})
        for part in (sorted(order[cut:]), sorted(order[:cut]))
        for rows in [[values[part] for values in data.tensors]]
    ]


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_share_of_held_out_can_be_kept_for_the_last_decision(lab, share):
    auto = Auto(learned=False, ensembles=False, prefer="score", final_share=share)
    soup = auto.cook(lab.paths, lab.task)
    cooking, deciding = parts_of(lab.task, share)
    whole, judge = TaskEvaluator(lab.task), TaskEvaluator(deciding)
    values = {}
    for recipe in (BestSingle(), Uniform(), Greedy(), Pruned()):
        own = recipe.cook(lab.paths, cooking, report=False)
        row = next(row for row in soup.details.table if row.recipe == own.recipe)
        assert row.coefficients == own.coefficients  # cooked on the rest alone
        assert row.scores["held-out"] == whole.score(own.scored_as, "held-out")
        values[own.recipe] = judge.score(own.scored_as, "held-out").value
    assert values[soup.details.chosen] == max(values.values())  # decided on the share alone
    assert soup.scores["held-out"].n == len(lab.task.splits["held-out"].dataset)
    assert soup.details.n_final == round(600 * share)
    assert soup.details.optimism.n_candidates == 4
    text = soup.details.sentences(soup)
    assert any(f"made on {round(600 * share)} examples of held-out that no" in t for t in text)
    assert not any("lower bound" in t for t in text)
    again = AutoDetails.from_json(json.loads(json.dumps(soup.to_json())))
    assert again.n_final == soup.details.n_final


def test_a_share_of_everything_or_of_a_program_is_refused(lab):
    with pytest.raises(RecipeError, match="below 1"):
        Auto(final_share=1.0).cook(lab.paths, lab.task)
    scorer = CallableEvaluator(lambda model: 0.5, build=lab.task.build)
    with pytest.raises(EvaluationError, match="outputs by example"):
        Auto(final_share=0.5).cook(lab.paths, evaluator=scorer)


def test_for_metrics_over_all_examples_the_simplest_within_noise_is_taken_too(lab):
    task = replace(lab.task, metric="matthews", version="matthews")
    soup = Auto(learned=False, ensembles=False).cook(lab.paths, task)
    assert soup.details.chosen != soup.details.ahead  # 600 examples do not tell them apart
    evaluator = TaskEvaluator(task)
    best, taken = (
        evaluator.predictions(recipe.cook(lab.paths, task, report=False).scored_as, "held-out")
        for recipe in (Auto(learned=False, ensembles=False, prefer="score"), Auto(learned=False))
    )
    assert difference(best, taken, "held-out").within_noise
    assert soup.gain.verdict != "untested"
    assert all(found.low <= found.value <= found.high for found in soup.gain.splits.values())


def test_an_unknown_preference_is_refused(lab):
    with pytest.raises(RecipeError, match="expected 'simple' or 'score'"):
        Auto(prefer="cheap").cook(lab.paths, lab.task)


def test_optimism_counts_every_model_that_was_scored_in_full(lab):
    evaluator = TaskEvaluator(lab.task)
    soup = Auto(learned=False).cook(lab.paths, evaluator=evaluator, report=False)
    found = soup.details.optimism
    assert found.low <= found.value <= found.high
    steps = [*Greedy().cook(lab.paths, lab.task, report=False).steps]
    steps += Pruned().cook(lab.paths, lab.task, report=False).steps
    in_full = sum(step.score is not None for step in steps)
    # Singles, the four soups, what greedy and pruned tried, and the soup that pruned starts from.
    assert found.n_candidates == len(lab.paths) + 4 + in_full + 1


def test_with_a_base_every_point_of_every_line_is_a_candidate(lab):
    before = TaskEvaluator(lab.task)
    soup = Auto(learned=False, alphas=(0.25,), ensembles=False).cook(
        lab.paths[:1], base=lab.base, evaluator=before, report=False
    )
    # One ingredient: four soups that are it, and four lines of four points (0, 0.25, 0.5, 1).
    n_soups = sum(row.chosen_from for row in soup.details.table)
    n_lines = sum(row.recipe.startswith("wise-ft") for row in soup.details.table)
    assert n_lines == 4
    assert soup.details.optimism.n_candidates >= 1 + n_soups + 4 * n_lines


def test_choosing_on_noise_is_seen_to_be_optimistic_with_one_run_and_its_base(lab):
    """Labels that say nothing: what is gained on them is all optimism."""
    held_out = lab.task.splits["held-out"].dataset
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (len(held_out),), generator=generator)
        data = TensorDataset(held_out.tensors[0], labels)
        task = with_splits(lab.task, {"held-out": Split(data, role="held-out")})
        soup = Auto(learned=False, ensembles=False, prefer="score").cook(
            lab.paths[:1], task, base=lab.base
        )
        found.append((soup.scores["held-out"].value - 0.1, soup.details.optimism.value))
    true, told = np.mean(found, axis=0)
    assert told == pytest.approx(true, abs=0.006)
    assert told > 0.003


def test_a_recipe_that_cannot_be_cooked_leaves_a_row_that_says_why(lab, monkeypatch):
    def fails(self, context):
        raise EvaluationError("the loss is not finite\nmore of it")

    monkeypatch.setattr(Learned, "solve", fails)
    soup = Auto().cook(lab.paths[:3], lab.task)
    row = next(row for row in soup.details.table if row.recipe == "learned")
    assert (row.reason, row.scores, row.chosen_from) == ("the loss is not finite", {}, False)
    assert "learned could not be cooked: the loss is not finite" in soup.details.sentences(soup)
    assert soup.details.chosen != "learned"
    json.dumps(soup.to_json())


def test_a_run_whose_logits_overflow_costs_the_learned_soup_alone(lab, tmp_path):
    weights = load_file(lab.paths[0])
    weights["3.weight"] = weights["3.weight"].sign() * 3e38  # finite, and its products are not
    diverged = str(tmp_path / "diverged.safetensors")
    save_file(weights, diverged)
    soup = Auto().cook([*lab.paths[:3], diverged], lab.task)
    rows = {row.recipe: row for row in soup.details.table}
    learned = next(row for name, row in rows.items() if name.startswith("learned"))
    assert learned.reason or learned.recipe.startswith("learned (took")
    assert diverged not in soup.selected
    assert soup.scores["held-out"].value >= rows["best-single"].scores["held-out"].value - 0.02


def test_one_held_out_example_leaves_the_others(lab):
    whole = lab.task.splits["held-out"].dataset
    one = Split(TensorDataset(*(values[:1] for values in whole.tensors)), role="held-out")
    task = with_splits(lab.task, {**lab.task.splits, "held-out": one})
    soup = Auto().cook(lab.paths[:3], task)
    assert [row.recipe for row in soup.details.table if row.reason] == ["learned"]


def test_a_learned_soup_that_took_another_is_called_so(lab, monkeypatch):
    from stockpot.recipes.learned import recipe

    monkeypatch.setattr(recipe, "_decide", lambda standings: "greedy")
    soup = Auto().cook(lab.paths[:3], lab.task)
    names = [row.recipe for row in soup.details.table]
    assert "learned (took greedy)" in names
    assert "learned" not in names


def test_the_details_of_an_old_record_are_read(lab):
    soup = Auto(learned=False).cook(lab.paths[:3], lab.task)
    data = json.loads(json.dumps(soup.to_json()))
    del data["ahead"]
    for row in data["table"]:
        del row["reason"]
    assert AutoDetails.from_json(data).chosen == soup.details.chosen


def test_runs_of_half_precision_go_with_a_base_of_single_where_the_type_is_said(lab, tmp_path):
    runs = []
    for path in lab.paths[:2]:
        runs.append(str(tmp_path / Path(path).name))
        save_file({n: v.bfloat16() for n, v in load_file(path).items()}, runs[-1])
    with pytest.raises(MismatchError, match="--dtype"):
        Greedy().cook(runs, lab.task, base=lab.base)
    for recipe in (Greedy(), Auto(learned=False, alphas=(0.5,))):
        soup = recipe.cook(runs, lab.task, base=lab.base, dtype="bf16")
        assert {spec.dtype.value for spec in soup.mixture.values()} == {"BF16"}


def test_further_recipes_stand_in_the_table_where_they_are_named(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    recipe = Auto(recipes=("uniform", "model-stock", "slerp", "arithmetic"), ensembles=False)
    soup = recipe.cook(lab.paths[:2], lab.task, base=lab.base)
    rows = {row.recipe: row for row in soup.details.table}
    assert list(rows) == [
        "best-single",
        "uniform",
        "model-stock",
        "slerp",
        "task-arithmetic",
        "base",
    ]
    for name, own in (("model-stock", ModelStock()), ("slerp", Slerp())):
        alone = own.cook(lab.paths[:2], lab.task, base=lab.base)
        assert rows[name].coefficients == alone.coefficients
        assert rows[name].scores["test"].value == alone.scores["test"].value
    without = recipe.cook(lab.paths[:1], lab.task, report=False)
    reasons = {row.recipe: row.reason for row in without.details.table}
    assert "base" in reasons["model-stock"]
    assert reasons["best-single"] == ""


@pytest.mark.parametrize(
    "wanted", [ModelStock(), Slerp(t=0.5), TaskArithmetic(scale=0.6)], ids=lambda one: one.name
)
def test_a_further_recipe_that_wins_is_saved_proven_and_shown(wanted, lab, tmp_path, monkeypatch):
    """Scores are the nearness to the soup of one of them."""
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    sources = lab.paths[:2]
    target = wanted.cook(sources, base=lab.base).mixture
    target = {name: target.read(name) for name in target}
    out = tmp_path / "soup.safetensors"

    def nearness(model):
        state = model.state_dict()
        return -sum(float((state[name] - target[name]).abs().sum()) for name in state)

    evaluator = CallableEvaluator(nearness, build=lab.task.build)
    recipe = Auto(recipes=("uniform", "greedy", wanted.name))
    soup = recipe.cook(sources, base=lab.base, evaluator=evaluator)
    assert soup.details.chosen == wanted.name
    soup.save(out)
    assert verify(out) == []
    again = Soup.load(out)
    assert type(again.details.winner) is type(wanted).details_type
    assert wanted.name in to_html(open_report(out))


def test_what_auto_does_not_try_is_refused_by_name(lab):
    with pytest.raises(RecipeError, match="does not try 'ties'; expected some of best-single"):
        Auto(recipes=("greedy", "ties")).cook(lab.paths, lab.task)
