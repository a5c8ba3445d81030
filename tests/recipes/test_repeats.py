from __future__ import annotations

import numpy as np
import pytest

from stockpot.errors import RecipeError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.recipes import Greedy, Uniform
from stockpot.recipes.base import prepare
from stockpot.recipes.repeats import ingredients_curve, random_orders


@pytest.fixture
def kitchen(lab):
    return prepare(lab.paths[:5], None, evaluator=Evaluator(lab.task))


def test_random_orders_are_greedy_soups_of_their_seeds(lab, kitchen):
    found = random_orders(kitchen, Greedy(), n_orders=3)
    alone = [Greedy(order="random", seed=s).cook(lab.paths[:5], lab.task) for s in range(3)]
    assert [soup.selected for soup in found.soups] == [soup.selected for soup in alone]
    values = [soup.scores["test"].value for soup in alone]
    assert found.mean["test"] == pytest.approx(np.mean(values))
    assert found.sd["test"] == pytest.approx(np.std(values, ddof=1))
    assert found.to_json()["orders"] == 3


def test_one_order_has_no_spread(kitchen):
    with pytest.raises(RecipeError, match="no spread"):
        random_orders(kitchen, Greedy(), n_orders=1)


def test_the_curve_ends_at_the_uniform_soup_of_all(lab, kitchen):
    curve = ingredients_curve(kitchen, n_orders=2)
    assert [point.n_ingredients for point in curve] == [1, 2, 3, 4, 5]
    whole = Uniform().cook(lab.paths[:5], lab.task).scores["test"].value
    assert curve[-1].mean["test"] == whole
    assert curve[-1].sd["test"] is None


def test_sizes_out_of_range_are_refused(kitchen):
    with pytest.raises(RecipeError, match="there are 5"):
        ingredients_curve(kitchen, sizes=[6])


def test_greedy_tells_both_on_request(lab):
    soup = Greedy(random_orders=2, curve=1).cook(lab.paths[:3], lab.task)
    found = soup.extra["random_orders"]
    alone = [
        Greedy(order="random", seed=s).cook(lab.paths[:3], lab.task, report=False) for s in (0, 1)
    ]
    assert found["selected"] == [list(other.selected) for other in alone]
    assert set(found["mean"]) == set(soup.scores)
    assert [point["ingredients"] for point in soup.extra["ingredients_curve"]] == [1, 2, 3]
    whole = Uniform().cook(lab.paths[:3], lab.task).scores["test"].value
    assert soup.extra["ingredients_curve"][-1]["mean"]["test"] == whole
