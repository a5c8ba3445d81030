"""Scores from a function of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot.errors import EvaluationError
from stockpot.evaluate.callable import CallableEvaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Role
from stockpot.formats.memory import from_state_dict
from stockpot.recipes import Greedy

TARGET = torch.tensor([1.0, 2.0])


def distance(model: torch.nn.Module) -> float:
    return -float((model.weight[0] - TARGET).square().sum())


def linear() -> torch.nn.Module:
    return torch.nn.Linear(2, 1)


def checkpoint(*weight: float):
    return from_state_dict({"weight": torch.tensor([weight]), "bias": torch.zeros(1)})


def test_a_function_chooses_a_soup():
    evaluator = CallableEvaluator(distance, build=linear)
    models = [checkpoint(0.5, 2.0), checkpoint(1.5, 2.0), checkpoint(9.0, 9.0)]
    soup = Greedy().cook(models, evaluator=evaluator)
    assert soup.mixture.read("weight").tolist() == [[1.0, 2.0]]
    assert (soup.scores["held-out"].value, soup.scores["held-out"].low) == (0.0, None)
    assert all(step.score is not None for step in soup.steps)
    assert all(step.p_value is None for step in soup.steps)


def test_lower_can_be_better():
    loss = CallableEvaluator(lambda model: -distance(model), build=linear, direction="min")
    soup = Greedy().cook([checkpoint(9.0, 9.0), checkpoint(1.0, 2.5)], evaluator=loss)
    assert soup.mixture.read("weight").tolist() == [[1.0, 2.5]]
    with pytest.raises(EvaluationError, match="expected max or min"):
        CallableEvaluator(distance, build=linear, direction="up")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 1.0, r"held-out function, <lambda>\(\), cannot be called with a model alone"),
        (lambda model, data: 1.0, r"<lambda>\(model, data\).*missing a required argument: 'data'"),
        (0.5, "held-out function is a float"),
    ],
)
def test_what_cannot_take_a_model_alone_is_refused_before_anything_is_scored(function, words):
    with pytest.raises(EvaluationError, match=words):
        CallableEvaluator(function, build=linear)


def test_functions_that_test_report_and_never_choose():
    reports = {"v2": lambda model: 0.25, "real": lambda model: 0.5}
    evaluator = CallableEvaluator(distance, build=linear, test=reports)
    assert split_to_choose_on(evaluator.task) == "held-out"
    assert {n: s.role for n, s in evaluator.task.splits.items()} == {
        "held-out": Role.HELD_OUT,
        "v2": Role.TEST,
        "real": Role.TEST,
    }
    scores = evaluator.scores(checkpoint(1.0, 2.0))
    assert {name: score.value for name, score in scores.items()} == {
        "held-out": 0.0,
        "v2": 0.25,
        "real": 0.5,
    }
    assert not any("independent" in note for note in evaluator.notes)
    alone = CallableEvaluator(distance, build=linear)
    assert any("independent" in note for note in alone.notes)
    assert any("Task would add" in note for note in alone.notes)


def test_numbers_by_name_choose_by_score_or_else_by_the_first():
    named = CallableEvaluator(lambda m: {"loss": 3.0, "score": 0.75, "n": 8}, build=linear)
    score = named.score(checkpoint(0.0, 0.0), "held-out")
    assert (score.value, score.n) == (0.75, 8)
    first = CallableEvaluator(lambda m: {"f1": torch.tensor(0.5), "loss": 2.0}, build=linear)
    assert first.score(checkpoint(0.0, 0.0), "held-out").value == 0.5
    assert first.numbers(checkpoint(0.0, 0.0), "held-out")["loss"] == 2.0


@pytest.mark.parametrize("answer", [None, "good", {}, [1.0, 2.0]])
def test_answers_that_are_no_numbers_are_refused(answer):
    evaluator = CallableEvaluator(lambda model: answer, build=linear)
    with pytest.raises(EvaluationError, match="expected a number"):
        evaluator.score(checkpoint(0.0, 0.0), "held-out")


def test_a_score_that_is_not_finite_names_the_model():
    evaluator = CallableEvaluator(lambda model: float("nan"), build=linear)
    with pytest.raises(EvaluationError, match="<memory> the held-out function returned the score"):
        evaluator.score(checkpoint(0.0, 0.0), "held-out")


def test_what_the_function_does_to_the_model_is_undone():
    def spoil(model: torch.nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        value = distance(model)
        model.train()
        model.weight.fill_(100.0)
        return value

    given = linear()
    before = given.weight.clone()
    evaluator = CallableEvaluator(spoil, build=given)
    assert evaluator.score(checkpoint(1.0, 2.0), "held-out").value == 0.0
    assert evaluator.score(checkpoint(1.0, 3.0), "held-out").value == -1.0
    assert torch.equal(given.weight, before)


def test_a_journal_answers_until_the_function_or_its_version_changes(tmp_path):
    calls = []

    def counted(model: torch.nn.Module) -> float:
        calls.append(1)
        return 1.0

    for version in ("1", "1", "2"):
        evaluator = CallableEvaluator(counted, build=linear, cache=tmp_path, version=version)
        evaluator.score(checkpoint(0.0, 0.0), "held-out")
        evaluator.close()
    assert len(calls) == 2


def test_what_needs_examples_is_refused():
    evaluator = CallableEvaluator(distance, build=linear)
    with pytest.raises(EvaluationError, match="give a Task"):
        evaluator.task.build()
    with pytest.raises(EvaluationError, match="give a Task"):
        evaluator.task.splits["held-out"].dataset[0]
    with pytest.raises(EvaluationError, match="only scores"):
        evaluator.score_of(evaluator.from_outputs(np.ones((1, 1)), "held-out"), "held-out")
