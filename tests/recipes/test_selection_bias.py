from __future__ import annotations

import numpy as np
import pytest

from stockpot.evaluate.stats import selection_optimism
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import Greedy, Pruned, Uniform


@pytest.mark.parametrize("recipe", [Greedy, Pruned])
def test_rejected_soups_are_candidates_only_on_request(lab, recipe):
    some = recipe().cook(lab.paths, lab.task, report=False)
    every = recipe(optimism="full").cook(lab.paths, lab.task, report=False)
    scored = [step for step in some.steps if step.score is not None]
    extra = recipe is Pruned  # the uniform soup, which it starts from
    assert some.details.to_json()["optimism"]["candidates"] == len(lab.paths) + len(scored) + extra
    assert (
        every.details.to_json()["optimism"]["candidates"]
        == len(lab.paths) + len(every.steps) + extra
    )
    assert len(scored) < len(some.steps)
    assert some.examples_evaluated == every.examples_evaluated


def test_with_all_of_them_it_is_that_of_a_loop_without_early_rejection(lab):
    early = Greedy(optimism="full").cook(lab.paths, lab.task, report=False)
    late = Greedy(early_rejection=False).cook(lab.paths, lab.task, report=False)
    assert early.details.to_json()["optimism"] == late.details.to_json()["optimism"]


def test_it_is_the_bootstrap_over_the_examples_that_chose(lab):
    evaluator = TaskEvaluator(lab.task)
    soup = Greedy(early_rejection=False).cook(lab.paths[:2], evaluator=evaluator, report=False)
    singles = [evaluator.predictions(m, "held-out").per_example for m in soup.mixture.ingredients]
    best = max(singles, key=np.mean)
    both = Uniform().cook(lab.paths[:2], evaluator=evaluator).mixture
    rows = [*singles, best, evaluator.predictions(both, "held-out").per_example]
    expected = selection_optimism(rows)
    assert soup.details.to_json()["optimism"] == {
        "value": expected.value, "low": expected.low, "high": expected.high, "candidates": 4,
    }  # fmt: skip


def test_a_metric_that_is_no_mean_has_none(lab):
    task = type(lab.task)(
        build=lab.task.build, splits=lab.task.splits, batch_size=128, metric="f1-macro"
    )
    soup = Greedy().cook(lab.paths[:2], task, report=False)
    assert soup.details.to_json()["optimism"] is None
