"""Every shipped recipe passes the suite, and recipes that misbehave do not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from stockpot.evaluate.task import Split
from stockpot.recipes import Auto, BestSingle, Greedy, Learned, Pruned, Uniform, WiseFT
from stockpot.tasks.classification import ClassificationTask
from stockpot.testing.recipes import (
    RECIPE_CHECKS,
    RecipeCase,
    arguments_may_come_in_any_order,
    coefficients_are_complete,
    is_a_value,
    nothing_is_scored_twice,
    only_held_out_data_choose,
    recipe_conformance,
)

RECIPES = [
    (Uniform(), False), (Uniform(top=2), True), (BestSingle(), True), (Greedy(), True),
    (Greedy(early_rejection=False, accept="gt"), True), (Greedy(order="given"), True),
    (Pruned(), True), (WiseFT(alphas=(0.5,)), True), (WiseFT(alpha=0.3), False),
    (Auto(alphas=(0.5,)), True), (Learned(n_epochs=3), True),
    (Learned(by="layer", n_epochs=3), True),
]  # fmt: skip


@pytest.fixture(scope="module")
def pantry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pantry")
    torch.manual_seed(0)
    x = torch.randn(240, 6)
    truth = torch.nn.Linear(6, 3)
    y = truth(x).argmax(-1)
    splits = {
        "val": Split(TensorDataset(x[:120], y[:120])),
        "test": Split(TensorDataset(x[120:], y[120:]), role="test"),
        "shift": Split(TensorDataset(x[120:] + 0.3, y[120:]), role="shift"),
    }
    task = ClassificationTask(build=lambda: torch.nn.Linear(6, 3), splits=splits, batch_size=50)
    paths = []
    for i in range(5):
        paths.append(str(folder / f"{i}.safetensors"))
        noise = 0.1 + 0.12 * i
        weights = {n: v + noise * torch.randn_like(v) for n, v in truth.state_dict().items()}
        save_file(weights, paths[-1])
    return task, paths[1:], paths[0]


@pytest.mark.parametrize(("recipe", "chooses"), RECIPES, ids=lambda v: str(v)[:40])
def test_passes_the_suite(recipe, chooses, pantry, tmp_path):
    task, paths, base = pantry
    order_matters = isinstance(recipe, Greedy) and recipe.order == "given"
    recipe_conformance(RecipeCase(recipe, paths, task, tmp_path, base, chooses, order_matters))


@dataclass(frozen=True)
class First:
    """Takes the first argument, whatever it is worth, and asks nobody."""

    name = "first"

    def cook(self, ingredients, task=None, *, evaluator=None, choose_on=None, **options):
        return Uniform().cook(list(ingredients)[:1], task, evaluator=evaluator, **options)


@dataclass
class Mutable:
    name = "mutable"

    def cook(self, ingredients, task=None, **options):
        return Uniform().cook(ingredients, task, **options)


@dataclass(frozen=True)
class Forgetful:
    """Scores with an evaluator of its own and passes on a soup that was not asked for."""

    name = "forgetful"

    def cook(self, ingredients, task=None, *, evaluator=None, **options):
        evaluator.counters.examples += 1
        soup = Uniform().cook(ingredients, task, evaluator=evaluator, **options)
        return dataclasses.replace(soup, selected=("elsewhere",))


@pytest.mark.parametrize(
    ("recipe", "check"),
    [
        (First(), arguments_may_come_in_any_order),
        (First(), only_held_out_data_choose),
        (Mutable(), is_a_value),
        (Forgetful(), nothing_is_scored_twice),
        (Forgetful(), coefficients_are_complete),
    ],
)
def test_a_recipe_that_misbehaves_is_caught(recipe, check, pantry, tmp_path):
    task, paths, base = pantry
    with pytest.raises(AssertionError):
        check(RecipeCase(recipe, paths, task, tmp_path, base))


def test_the_suite_holds_every_check():
    import stockpot.testing.recipes as suite

    public = {
        name
        for name, value in vars(suite).items()
        if getattr(value, "__module__", None) == suite.__name__
        and callable(value)
        and name[0].islower()
        and name != "recipe_conformance"
    }
    assert public == {check.__name__ for check in RECIPE_CHECKS}
