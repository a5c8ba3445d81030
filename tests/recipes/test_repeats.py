from __future__ import annotations

import numpy as np
import pytest

from stockpot.errors import RecipeError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import Greedy, Uniform
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.greedy import ingredients_curve, random_orders


@pytest.fixture
def context(lab):
    return RecipeContext(
        ingredients=Ingredients(lab.paths[:5]),
        evaluator=TaskEvaluator(lab.task),
        choose_on="held-out",
    )


def test_random_orders_are_greedy_soups_of_their_seeds(lab, context):
    found = random_orders(context, Greedy(), n_orders=3)
    alone = [Greedy(order="random", seed=s).cook(lab.paths[:5], lab.task) for s in range(3)]
    assert list(found.selected) == [soup.selected for soup in alone]
    values = [soup.scores["test"].value for soup in alone]
    assert found.mean["test"] == pytest.approx(np.mean(values))
    assert found.sd["test"] == pytest.approx(np.std(values, ddof=1))
    assert found.to_json()["orders"] == 3


def test_one_order_has_no_spread(context):
    with pytest.raises(RecipeError, match="no spread"):
        random_orders(context, Greedy(), n_orders=1)


def test_the_curve_ends_at_the_uniform_soup_of_all(lab, context):
    curve = ingredients_curve(context, n_orders=2)
    assert [point.n_ingredients for point in curve] == [1, 2, 3, 4, 5]
    whole = Uniform().cook(lab.paths[:5], lab.task).scores["test"].value
    assert curve[-1].mean["test"] == whole
    assert curve[-1].sd["test"] is None


def test_sizes_out_of_range_are_refused(context):
    with pytest.raises(RecipeError, match="there are 5"):
        ingredients_curve(context, sizes=[6])


def test_greedy_tells_both_on_request(lab):
    soup = Greedy(random_orders=2, curve=1).cook(lab.paths[:3], lab.task)
    found = soup.details.to_json()["random_orders"]
    alone = [
        Greedy(order="random", seed=s).cook(lab.paths[:3], lab.task, report=False) for s in (0, 1)
    ]
    assert found["selected"] == [list(other.selected) for other in alone]
    assert set(found["mean"]) == set(soup.scores)
    assert [point["ingredients"] for point in soup.details.to_json()["ingredients_curve"]] == [
        1,
        2,
        3,
    ]
    whole = Uniform().cook(lab.paths[:3], lab.task).scores["test"].value
    assert soup.details.to_json()["ingredients_curve"][-1]["mean"]["test"] == whole
