"""Every recipe of the table passes the suite, and one from outside; those that misbehave do not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from stockpot._options import option
from stockpot.evaluate.task import Split
from stockpot.recipes import RECIPES, Greedy, Learned, Pruned, Recipe, Uniform, WiseFT
from stockpot.recipes.base import Solution
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
    whatever_chose_is_recorded,
)

SMALL = {"auto": {"alphas": (0.5,)}, "wise-ft": {"alphas": (0.5,)}, "learned": {"n_epochs": 3}}
"""Options that make some recipes quick."""


@final
@dataclass(frozen=True, kw_only=True)
class Podium(Recipe):
    """The best few by score, the better ones counting more: a recipe from outside the package."""

    name = "podium"
    title = "Podium"
    command = "podium"
    summary = "Average the best few, the better the more."

    places: int = option(3, minimum=1, help="How many are averaged.")

    def solve(self, context):
        best = [i for i, _ in context.ranking(self.name)][: self.places]
        total = sum(range(1, len(best) + 1))
        shares = [0.0] * len(context.ingredients)
        for place, i in enumerate(best):
            shares[i] = (len(best) - place) / total
        return Solution(mixture=context.mixture(shares), selected=[context.paths[i] for i in best])


VARIANTS = [
    *(recipe(**SMALL.get(recipe.name, {})) for recipe in RECIPES), Podium(), Uniform(top=2),
    Greedy(early_rejection=False, accept="gt"), Greedy(order="given"), Greedy(random_orders=2),
    Pruned(n_passes=1), WiseFT(alpha=0.3), Learned(by="layer", n_epochs=3),
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    x = torch.randn(240, 6)
    truth = torch.nn.Linear(6, 3)
    y = truth(x).argmax(-1)
    categories = ["one", "two", "three"] * 40
    splits = {
        "val": Split(TensorDataset(x[:120], y[:120]), categories=categories),
        "test": Split(TensorDataset(x[120:], y[120:]), role="test", categories=categories),
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


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda recipe: str(recipe)[:40])
def test_passes_the_suite(recipe, lab, tmp_path):
    task, paths, base = lab
    paths = paths[:2] if recipe.name == "slerp" else paths
    given = isinstance(recipe, Greedy) and recipe.order == "given"
    order_matters = given or recipe.name == "trajectory"
    recipe_conformance(RecipeCase(recipe, paths, task, tmp_path, base, order_matters))


class Misbehaving(Recipe):
    name = "misbehaving"
    title = "Misbehaving"
    summary = "Does what it must not."


@dataclass(frozen=True, kw_only=True)
class First(Misbehaving):
    """Takes the first argument, whatever its score, and asks nobody, but says that it chooses."""

    def solve(self, context):
        return Solution(mixture=context.uniform([0]), selected=[context.paths[0]])

    def selection_split(self, task, choose_on):
        return choose_on or "val"


@dataclass(frozen=True, kw_only=True)
class Secretive(Misbehaving):
    """Chooses by score behind the back of the context."""

    def solve(self, context):
        scores = [context.evaluator.score(m, "val").value for m in context.ingredients]
        best = scores.index(max(scores))
        return Solution(mixture=context.uniform([best]), selected=[context.paths[best]])


@dataclass(kw_only=True)
class Mutable(Misbehaving):
    def solve(self, context):
        return Solution(mixture=context.uniform([0, 1]), selected=context.paths[:2])


@dataclass(frozen=True, kw_only=True)
class Forgetful(Misbehaving):
    """Counts passes that were not made and selects what was not given."""

    def solve(self, context):
        context.evaluator.counters.examples += 1
        return Solution(mixture=context.uniform([0, 1]), selected=["elsewhere"])


@pytest.mark.parametrize(
    ("recipe", "check"),
    [
        (First(), arguments_may_come_in_any_order),
        (First(), only_held_out_data_choose),
        (First(), whatever_chose_is_recorded),
        (Secretive(), whatever_chose_is_recorded),
        (Mutable(), is_a_value),
        (Forgetful(), nothing_is_scored_twice),
        (Forgetful(), coefficients_are_complete),
    ],
)
def test_a_recipe_that_misbehaves_is_caught(recipe, check, lab, tmp_path):
    task, paths, base = lab
    with pytest.raises(AssertionError):
        check(RecipeCase(recipe, paths, task, tmp_path, base))


def test_what_follows_from_the_table():
    import stockpot

    for recipe in RECIPES:
        assert getattr(stockpot, recipe.__name__) is recipe
        assert recipe.summary
        assert recipe.title
        assert dataclasses.is_dataclass(recipe)
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


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
