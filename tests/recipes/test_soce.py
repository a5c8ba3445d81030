"""The soup of category experts, by values worked by hand."""

from __future__ import annotations

import json
from math import comb

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import stockpot
from stockpot.errors import RecipeError
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import SoCE
from stockpot.recipes.soce import SoCEDetails, correlations, grid
from stockpot.tasks import ClassificationTask

CATEGORIES = ("a", "a", "b", "b")


def task(
    metric: str = "accuracy", categories: tuple[str, ...] | None = CATEGORIES
) -> ClassificationTask:
    n = len(CATEGORIES)
    data = TensorDataset(torch.eye(n), torch.zeros(n, dtype=torch.long))
    return ClassificationTask(
        build=lambda: torch.nn.Linear(n, 2, bias=False),
        splits={
            "val": Split(data, role="held-out", categories=categories),
            "test": Split(data, role="test", categories=categories),
        },
        metric=metric,
        version="1",
    )


def model(*margins: float) -> stockpot.Checkpoint:
    """One whose logit of the right class is so far above the other, example by example."""
    margin = torch.tensor(margins, dtype=torch.float64) / 2
    return stockpot.from_state_dict({"weight": torch.stack([margin, -margin])})


# With the share w of the first, the margins are 5w − 1, 5w − 1, 2 − 3w and 1 − 2.7w: all are
# above 0 for 0.2 < w < 0.37, and of the grid at 0.3 alone.
FIRST, SECOND = model(4, 4, -1, -1.7), model(-1, -1, 2, 1)
BETWEEN = model(1, -1, 1, -1)


def test_experts_and_their_weights_by_hand() -> None:
    soup = SoCE().cook([FIRST, BETWEEN, SECOND], task())
    paths = list(soup.coefficients)
    assert list(soup.coefficients.values()) == [0.3, 0.7]
    assert soup.scores["val"].value == 1
    assert list(soup.selected) == paths
    assert list(soup.details.experts.values()) == [("a",), ("b",)]
    assert soup.details.categories == ("a", "b")
    assert np.allclose(soup.details.correlations, [[1, -1], [-1, 1]])
    assert soup.details.tried == 9
    assert soup.chosen_on == "val"
    assert soup.examples_evaluated == 9 * 4
    assert SoCEDetails.from_json(json.loads(json.dumps(soup.to_json()))) == soup.details


def test_of_equal_weights_the_most_even_are_taken() -> None:
    """Without the last example every share from 0.3 to 0.6 has all right."""
    second = model(-1, -1, 2, 2)
    soup = SoCE().cook([model(4, 4, -1, -1), second], task())
    assert list(soup.coefficients.values()) == [0.5, 0.5]


def test_a_metric_by_categories_decides_itself() -> None:
    """By the mean a share of 0.4 to 0.6 is as good as any; the worst category wants 0.9."""
    first, second = model(1, 1, -1, -1), model(-9, -8.5, 9, 1)
    found = {}
    for metric in ("accuracy", "accuracy by a"):
        soup = SoCE().cook([first, second], task(metric))
        found[metric] = list(soup.coefficients.values())
    assert found["accuracy by a"] == [0.9, 0.1]
    assert found["accuracy"] != found["accuracy by a"]


def test_categories_that_rank_alike_have_no_experts() -> None:
    good, bad = model(1, 1, 1, 1), model(-1, 1, -1, 1)
    soup = SoCE().cook([bad, good], task())
    assert list(soup.coefficients.values()) == [1.0]
    assert soup.scores["val"].value == 1
    assert any("no experts of their own" in note for note in soup.notes)
    assert soup.examples_evaluated == 0


def test_a_category_in_which_all_are_equal_has_no_expert_and_no_correlation() -> None:
    soup = SoCE().cook([model(1, 1, 1, 1), model(-1, 1, 1, 1)], task())
    assert soup.details.correlations == ((1.0, None), (None, None)) or (
        soup.details.correlations[1] == (None, None)
    )
    assert list(soup.details.experts.values()) == [()]


@pytest.mark.parametrize("n", range(1, 11))
def test_the_grid_has_every_composition_of_ten_once(n: int) -> None:
    found = grid(n)
    assert len(set(found)) == len(found) == comb(9, n - 1)
    assert all(sum(shares) == 10 and min(shares) >= 1 for shares in found)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_those_of_numpy(seed: int) -> None:
    values = np.random.default_rng(seed).random((6, 4))
    assert np.allclose(correlations(values), np.corrcoef(values, rowvar=False))


def test_more_experts_than_tenths_leave_out_those_of_the_fewest_categories() -> None:
    n = 12
    categories = (*(f"{i:02d}" for i in range(n)), "00", "01")
    data = TensorDataset(torch.eye(n + 2), torch.zeros(n + 2, dtype=torch.long))
    made = ClassificationTask(
        build=lambda: torch.nn.Linear(n + 2, 2, bias=False),
        splits={"val": Split(data, role="held-out", categories=categories)},
        version="1",
    )
    models = []
    for i in range(n):
        margin = torch.full((n + 2,), -0.5)
        margin[i] = 1.0
        models.append(stockpot.from_state_dict({"weight": torch.stack([margin, -margin])}))
    soup = SoCE().cook(models, made)
    assert len(soup.selected) == 10
    assert set(soup.coefficients.values()) == {0.1}
    assert any("there are 12 experts; the 10" in note for note in soup.notes)


@pytest.mark.parametrize("categories", [None, ("a", "a", "a", "a")])
def test_without_categories_the_remedy_is_named(categories: tuple[str, ...] | None) -> None:
    with pytest.raises(RecipeError, match=r"category: COLUMN in task\.yaml"):
        SoCE().cook([FIRST, SECOND], task(categories=categories))


def test_the_threshold_is_a_correlation() -> None:
    with pytest.raises(RecipeError, match="below is 2; expected a correlation"):
        SoCE(below=2)


def test_nothing_below_the_threshold_takes_no_expert() -> None:
    """The two categories correlate by −1, which is not below −1."""
    assert len(SoCE(below=-1).cook([FIRST, SECOND], task()).selected) == 1


def test_what_is_known_is_not_scored_again() -> None:
    evaluator = TaskEvaluator(task(), device="cpu")
    SoCE().cook([FIRST, SECOND], evaluator=evaluator, task=evaluator.task)
    before = evaluator.counters.examples
    SoCE().cook([FIRST, SECOND], evaluator=evaluator, task=evaluator.task)
    assert evaluator.counters.examples == before
