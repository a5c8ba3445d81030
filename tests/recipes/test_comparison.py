from __future__ import annotations

import json

import pytest

import stockpot
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.paired import compare
from stockpot.recipes.comparison import compare_models


@pytest.fixture(scope="module")
def compared(lab):
    evaluator = Evaluator(lab.task)
    models = [stockpot.open(path) for path in lab.paths[:3]]
    return evaluator, models, compare_models(evaluator, models, with_ensemble=True)


def test_every_model_is_scored_on_every_split(lab, compared) -> None:
    evaluator, models, found = compared
    assert list(found.scores) == lab.paths[:3]
    for model in models:
        assert dict(found.scores[model.path]) == evaluator.scores(model)


def test_every_two_are_compared_on_the_same_examples(lab, compared) -> None:
    evaluator, models, found = compared
    assert len(found.pairs) == 3 * len(lab.task.splits)
    pair = next(p for p in found.pairs if p.split == "test" and p.b == lab.paths[2])
    a, b = (evaluator.predictions(model, "test").per_example for model in (models[0], models[2]))
    expected = compare(a, b)
    assert (pair.a, pair.difference, pair.p_value) == (
        lab.paths[0],
        expected.difference,
        expected.p_value,
    )
    values = [found.scores[path]["test"].value for path in (pair.a, pair.b)]
    assert pair.difference == pytest.approx(values[0] - values[1])


def test_the_ensemble_is_that_of_all_models(lab, compared) -> None:
    _, _, found = compared
    assert found.ensemble.members == tuple(lab.paths[:3])


def test_it_can_be_written_as_json(compared) -> None:
    told = json.loads(json.dumps(compared[2].to_json(), allow_nan=False))
    assert set(told) == {"scores", "pairs", "ensemble"}
    assert set(told["pairs"][0]) == {"a", "b", "split", "difference", "low", "high", "p_value"}
