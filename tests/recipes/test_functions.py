"""Recipes as functions of models and a function: what a person tries first."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot.errors import RecipeError, StockpotError, VerificationError
from stockpot.evaluate.callable import CallableEvaluator
from stockpot.recipes import RECIPES

ROOT = Path(__file__).parents[2]


def modules(lab, n=8):
    found = []
    for path in lab.paths[:n]:
        model = lab.task.build()
        model.load_state_dict(load_file(path))
        found.append(model)
    return found


def accuracy_on(lab, split):
    x, y = lab.task.splits[split].dataset.tensors

    def accuracy(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return (model(x).argmax(-1) == y).float().mean().item()

    return accuracy


def test_eight_modules_and_a_function_make_the_greedy_soup_of_a_task(lab):
    models = modules(lab)
    before = [value.clone() for value in models[0].state_dict().values()]
    soup = stockpot.greedy(
        models, evaluate=accuracy_on(lab, "held-out"), test=accuracy_on(lab, "test")
    )
    same = stockpot.Greedy().cook(lab.paths, lab.task)
    assert [lab.paths[int(re.findall(r"\d+", p)[0])] for p in soup.selected] == list(same.selected)
    assert soup.scores["held-out"].value == pytest.approx(same.scores["held-out"].value)
    assert soup.scores["test"].value == pytest.approx(same.scores["test"].value)
    assert soup.chosen_on == "held-out"
    net = lab.task.build()
    net.load_state_dict(soup.state_dict())
    with torch.no_grad():
        assert accuracy_on(lab, "test")(net.eval()) == pytest.approx(soup.scores["test"].value)
    for value, kept in zip(models[0].state_dict().values(), before, strict=True):
        assert torch.equal(value, kept)


def test_what_has_no_examples_behind_it_is_untested_and_says_what_a_task_would_add(lab):
    soup = stockpot.greedy(modules(lab, 3), evaluate=accuracy_on(lab, "held-out"))
    assert soup.gain.verdict == "untested"
    assert str(soup).startswith("UNTESTED")
    assert any("a Task would add" in note for note in soup.notes)


@pytest.mark.parametrize(
    ("function", "recipe"),
    [
        (stockpot.greedy, stockpot.Greedy()),
        (stockpot.pruned, stockpot.Pruned()),
        (stockpot.trajectory, stockpot.Trajectory()),
        (stockpot.average, stockpot.Uniform()),
    ],
)
def test_with_a_task_each_is_its_recipe(lab, function, recipe):
    soup = function(lab.paths[:3], task=lab.task)
    assert soup.to_json() == recipe.cook(lab.paths[:3], lab.task).to_json()


def test_auto_and_interpolate_take_a_base(lab):
    soup = stockpot.auto(
        lab.paths[:2], task=lab.task, base=lab.base, learned=False, alphas=(0.5,), ensembles=False
    )
    assert "wise-ft" in [row.recipe for row in soup.details.table]
    line = stockpot.interpolate(lab.base, lab.paths[0], alpha=0.25)
    assert line.coefficients == {lab.paths[0]: 0.25, lab.base: 0.75}
    chosen = stockpot.interpolate(lab.base, lab.paths[0], task=lab.task, alphas=(0.5,))
    assert chosen.chosen_on == "held-out"


def test_a_learned_soup_of_a_function_is_searched_for(lab):
    pytest.importorskip("cma")
    soup = stockpot.learned(modules(lab, 2), evaluate=accuracy_on(lab, "held-out"), budget=20)
    assert soup.details.beta is None


@pytest.mark.parametrize("function", [stockpot.average, stockpot.greedy, stockpot.learned])
def test_models_in_memory_stay_apart_whatever_they_are_given_as(lab, function):
    models = modules(lab, 3)
    ways = {
        "modules": models,
        "state dicts": [model.state_dict() for model in models],
        "checkpoints": [stockpot.from_state_dict(model) for model in models],
        "paths": lab.paths[:3],
    }
    soups = {way: function(given, task=lab.task) for way, given in ways.items()}
    for way, soup in soups.items():
        kept = [c for c in soup.mixture.coefficients.vectors[""] if c != 0]
        assert list(soup.coefficients.values()) == kept, way
        assert sum(soup.coefficients.values()) == pytest.approx(1), way
        assert len(set(soup.selected)) == len(soup.selected), way
        assert soup.mixture.key == soups["paths"].mixture.key, way
        names = {row.name for row in soup.models()}
        assert names == {row.name for row in soups["paths"].models()}, way
        assert list(soup.to_frame().index) == list(soups["paths"].to_frame().index), way
    assert list(soups["modules"].coefficients) == list(soups["state dicts"].coefficients)


def test_the_record_of_models_in_memory_names_each_of_them(lab, tmp_path):
    models = [stockpot.from_state_dict(model) for model in modules(lab, 3)]
    soup = stockpot.average(models)
    soup.save(tmp_path / "soup.safetensors")
    record = stockpot.Soup.load(tmp_path / "soup.safetensors", search=[Path(lab.paths[0]).parent])
    assert record.coefficients == soup.coefficients
    assert len(record.coefficients) == 3
    assert stockpot.verify(tmp_path / "soup.safetensors", search=[Path(lab.paths[0]).parent]) == []
    with pytest.raises(VerificationError, match="3 of 3 ingredients were given in memory") as why:
        stockpot.verify(tmp_path / "soup.safetensors")
    assert "gone or have changed" not in str(why.value)
    assert "Save what was in memory" in str(why.value)


def test_what_was_in_memory_and_what_is_gone_are_told_apart(lab, tmp_path):
    gone = tmp_path / "gone.safetensors"
    shutil.copy(lab.paths[0], gone)
    soup = stockpot.average([gone, *modules(lab, 3)[1:], lab.paths[3]])
    soup.save(tmp_path / "soup.safetensors")
    gone.unlink()
    message = "^1 of 4 ingredients are gone or have changed; 2 of 4 ingredients were given in mem"
    with pytest.raises(VerificationError, match=message) as why:
        stockpot.verify(tmp_path / "soup.safetensors")
    assert [found.split(">")[0] for found in why.value.differences] == [
        f"{gone} is not found", "<memory 1", "<memory 2",
    ]  # fmt: skip


def test_paths_folders_state_dicts_and_checkpoints_are_models(lab, tmp_path):
    for i, path in enumerate(lab.paths[:2]):
        (tmp_path / f"run-{i:02d}.safetensors").write_bytes(Path(path).read_bytes())
    states = [load_file(path) for path in lab.paths[:2]]
    checkpoints = [stockpot.open(path) for path in lab.paths[:2]]
    keys = {
        stockpot.average(models).mixture.key
        for models in (str(tmp_path), tmp_path, lab.paths[:2], checkpoints)
    }
    assert len(keys) == 1
    a = stockpot.average(states).state_dict()
    b = stockpot.average(lab.paths[:2]).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_paths_and_a_function_need_a_builder(lab):
    score = accuracy_on(lab, "held-out")
    with pytest.raises(RecipeError, match="build=…"):
        stockpot.greedy(lab.paths[:2], evaluate=score)
    soup = stockpot.greedy(lab.paths[:2], evaluate=score, build=lab.task.build)
    assert set(soup.selected) <= set(lab.paths)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "there are no ingredients"),
        ("nope/", "there is nothing at nope/"),
        (["{run}", "nope"], "there is nothing at nope"),
    ],
)
def test_models_that_are_not_there_are_named_before_a_builder_is_asked_for(lab, models, message):
    given = models if isinstance(models, str) else [one.format(run=lab.paths[0]) for one in models]
    with pytest.raises(StockpotError, match=f"^{message}"):
        stockpot.greedy(given, evaluate=accuracy_on(lab, "held-out"))


def test_a_base_that_is_a_module_can_be_called(lab):
    (base,) = modules(lab, 1)
    score = accuracy_on(lab, "held-out")
    soup = stockpot.interpolate(base, lab.paths[1], evaluate=score, report=False)
    assert 0 <= soup.details.alpha <= 1


def test_a_function_that_makes_a_task_is_called_as_on_the_command_line(lab):
    made = stockpot.greedy(lab.paths[:2], task=lambda: lab.task, report=False)
    assert made.to_json() == stockpot.greedy(lab.paths[:2], task=lab.task, report=False).to_json()


def test_a_recipe_names_what_does_not_score(lab):
    with pytest.raises(RecipeError, match=r"^task= is a function; .*made already"):
        stockpot.Greedy().cook(lab.paths, lambda: lab.task)
    with pytest.raises(RecipeError, match=r"^evaluator= is a function; .*stockpot.greedy"):
        stockpot.Greedy().cook(lab.paths, evaluator=accuracy_on(lab, "held-out"))
    with pytest.raises(RecipeError, match=r"^evaluator= is a .*; .* give the task as task="):
        stockpot.Uniform().cook(lab.paths, evaluator=lab.task)


@pytest.mark.parametrize(
    ("task", "found"),
    [
        (lambda model: 1.0, "a function; .* what scores a model is evaluate="),
        (lambda: 3, "a function that returns an int"),
        (3, "an int"),
        (stockpot.ClassificationTask, "a type"),
        (torch.nn.Linear(1, 1), "a Linear"),
    ],
)
def test_what_is_no_task_and_makes_none_is_named(lab, task, found):
    with pytest.raises(RecipeError, match=f"^task= is {found}"):
        stockpot.greedy(lab.paths[:2], task=task)


def test_between_two_models_a_soup_prints_how_far(lab):
    assert "wise-ft: α = 0.25 from the base to " in str(
        stockpot.interpolate(lab.base, lab.paths[0], alpha=0.25)
    )
    at_the_base = stockpot.interpolate(lab.base, lab.paths[0], alpha=0)
    assert "wise-ft: α = 0 from the base\n" in str(at_the_base)


def test_lower_is_better_where_it_is_said(lab):
    x, y = lab.task.splits["held-out"].dataset.tensors

    def loss(model):
        return torch.nn.functional.cross_entropy(model(x), y).item()

    soup = stockpot.greedy(modules(lab, 4), evaluate=loss, direction="min")
    scores = [step.score for step in soup.steps if step.accepted]
    assert scores == sorted(scores, reverse=True)


def test_an_evaluator_is_taken_as_it_is(lab):
    scorer = CallableEvaluator(accuracy_on(lab, "held-out"), build=lab.task.build)
    soup = stockpot.greedy(lab.paths[:2], evaluate=scorer, report=False)
    assert scorer.score(soup.mixture, "held-out").value == soup.scores["held-out"].value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lab: stockpot.greedy(lab.paths), "task=… or evaluate=…"),
        (lambda lab: stockpot.greedy(lab.paths, task=lab.task, ordre="score"), "no option ordre"),
        (lambda lab: stockpot.greedy(lab.paths, task=lab.task, test=len), "goes with a function"),
    ],
)
def test_mistakes_are_answered_with_what_is_expected(lab, call, message):
    with pytest.raises(RecipeError, match=message):
        call(lab)


def test_inspect_is_a_function_too(lab):
    found = stockpot.inspect(lab.paths[:3], base=lab.base)
    assert found.compatible


def test_every_recipe_with_a_command_is_a_function_of_its_name():
    for recipe in RECIPES:
        if recipe.command is not None and recipe.name in (
            "uniform", "greedy", "pruned", "learned", "wise-ft", "trajectory", "auto",
        ):  # fmt: skip
            assert callable(getattr(stockpot, recipe.command))


def test_the_example_of_the_readme_takes_six_lines_and_runs(lab, capsys, monkeypatch):
    text = (ROOT / "README.md").read_text()
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "evaluate=accuracy" in b
    ]
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 6
    mine = ModuleType("mine")
    mine.models, mine.net = modules(lab), lab.task.build()
    mine.accuracy = accuracy_on(lab, "held-out")
    mine.test_accuracy = accuracy_on(lab, "test")
    monkeypatch.setitem(sys.modules, "mine", mine)
    given = {}
    exec(compile(block, "README.md", "exec"), given)
    assert capsys.readouterr().out
    for name, value in given["soup"].state_dict().items():
        assert torch.equal(given["net"].state_dict()[name], value)


def test_inspect_takes_what_the_command_takes(tmp_path: Path) -> None:
    torch.save(
        {"ema": {"w": torch.eye(4)}, "state_dict": {"w": 2 * torch.eye(4)}}, tmp_path / "a.pt"
    )
    found = stockpot.inspect([tmp_path / "a.pt"], key="ema", base={"w": torch.eye(4)})
    assert found.moves is not None
    assert [move.distance for move in found.moves.ingredients] == [0.0]
    assert stockpot.inspect([tmp_path / "a.pt"], key="ema").checkpoints[0].fingerprint is None
    named = stockpot.inspect([tmp_path / "a.pt"], key="ema", fingerprints=True).checkpoints[0]
    assert named.fingerprint == stockpot.open(tmp_path / "a.pt", key="ema").fingerprint
