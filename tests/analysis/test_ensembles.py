from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from stockpot import Ingredients
from stockpot.evaluate.evaluator import Evaluator
from stockpot.recipes import ensemble, greedy_ensemble


def logits(lab, path):
    model = lab.task.build().eval()
    model.load_state_dict(load_file(path))
    with torch.inference_mode():
        return model(lab.task.splits["test"].dataset.tensors[0])


def test_scores_the_mean_of_the_logits(lab):
    found = ensemble(Evaluator(lab.task), Ingredients(lab.paths[:3]))
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
    assert ensemble(Evaluator(task), Ingredients(models)).scores == soup.scores


def test_greedy_ensemble_is_never_worse_than_the_best_member(lab):
    evaluator = Evaluator(lab.task)
    given = Ingredients(lab.paths)
    found = greedy_ensemble(evaluator, given, "held-out")
    best = max(evaluator.score(model, "held-out").value for model in given)
    assert found.scores["held-out"].value >= best
    assert [s.candidate for s in found.steps if s.accepted] == list(found.members)
