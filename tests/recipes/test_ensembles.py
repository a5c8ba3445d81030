from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot import Ingredients
from stockpot.evaluate.compare import paired_difference
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import ensemble, greedy_ensemble
from stockpot.recipes.ensembles import compare_models


def logits(lab, path):
    model = lab.task.build().eval()
    model.load_state_dict(load_file(path))
    with torch.inference_mode():
        return model(lab.task.splits["test"].dataset.tensors[0])


def test_scores_the_mean_of_the_logits(lab):
    found = ensemble(TaskEvaluator(lab.task), Ingredients(lab.paths[:3]))
    mean = torch.stack([logits(lab, p) for p in lab.paths[:3]]).mean(0)
    right = (mean.argmax(-1) == lab.task.splits["test"].dataset.tensors[1]).double().mean()
    assert found.scores["test"].value == pytest.approx(float(right))
    assert list(found.members) == lab.paths[:3]


def test_for_a_linear_model_it_equals_the_soup():
    from torch.utils.data import TensorDataset

    from stockpot.evaluate.task import Split
    from stockpot.recipes import Uniform
    from stockpot.tasks.classification import ClassificationTask

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(300, 8), torch.randint(0, 4, (300,)))
    task = ClassificationTask(build=lambda: torch.nn.Linear(8, 4), splits={"val": Split(data)})
    models = [torch.nn.Linear(8, 4).state_dict() for _ in range(5)]
    soup = Uniform().cook(models, task)
    assert ensemble(TaskEvaluator(task), Ingredients(models)).scores == soup.scores


def test_greedy_ensemble_is_never_worse_than_the_best_member(lab):
    evaluator = TaskEvaluator(lab.task)
    given = Ingredients(lab.paths)
    found = greedy_ensemble(evaluator, given, "held-out")
    best = max(evaluator.score(model, "held-out").value for model in given)
    assert found.scores["held-out"].value >= best
    assert [s.candidate for s in found.steps if s.accepted] == list(found.members)


@pytest.fixture(scope="module")
def compared(lab):
    evaluator = TaskEvaluator(lab.task)
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
    path, pair = next(
        p for p in found.pairs if (p[1].split, p[1].against) == ("test", lab.paths[2])
    )
    a, b = (evaluator.predictions(model, "test").per_example for model in (models[0], models[2]))
    expected = paired_difference(a, b)
    assert (path, pair.value, pair.p_value) == (lab.paths[0], expected.value, expected.p_value)
    values = [found.scores[path]["test"].value for path in (path, pair.against)]
    assert pair.value == pytest.approx(values[0] - values[1])


def test_the_ensemble_is_that_of_all_models(lab, compared) -> None:
    _, _, found = compared
    assert found.ensemble.members == tuple(lab.paths[:3])


def test_it_can_be_written_as_json(compared) -> None:
    told = json.loads(json.dumps(compared[2].to_json(), allow_nan=False))
    assert set(told) == {"scores", "pairs", "best", "ensemble"}
    assert set(told["pairs"][0]) == {"a", "b", "split", "difference", "low", "high", "p_value"}
