"""Early rejection against full scores, over tables of correctness and real outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError
from stockpot.evaluate.early_rejection import AcceptanceRule, decide, margins, passes
from stockpot.evaluate.metrics import MeanMetric
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.tasks.classification import ClassificationTask

N = 200


class Lookup(torch.nn.Module):
    """Outputs are the weights: row i of `table` is the logits of example i."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(N, 3))

    def forward(self, x):
        return self.table[x]


def make_task(targets, *, metric="accuracy", predict=None, batch_size=32):
    options = {} if predict is None else {"predict": predict}
    data = TensorDataset(torch.arange(N), targets)
    splits = {"val": Split(data, fingerprint="table")}
    return ClassificationTask(
        build=Lookup, splits=splits, batch_size=batch_size, metric=metric, version="1", **options
    )


def table(logits):
    return from_state_dict({"table": logits})


def tables(seed, n_tables, accuracy):
    rng = np.random.default_rng(seed)
    targets = torch.from_numpy(rng.integers(0, 3, N))
    found = []
    for _ in range(n_tables):
        logits = torch.from_numpy(rng.normal(size=(N, 3))).float()
        right = torch.from_numpy(rng.random(N) < accuracy)
        logits[right, targets[right]] += 6
        found.append(logits)
    return targets, found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    accuracy=st.sampled_from([0.3, 0.8, 0.97]),
    accept=st.sampled_from(["ge", "gt"]),
    min_gain=st.sampled_from([0.0, 0.005, 0.01, -0.02]),
    metric=st.sampled_from(["accuracy", "cross-entropy", "own"]),
    guess=st.sampled_from(["none", "good", "wrong"]),
)
def test_the_decision_is_that_of_full_scores(seed, accuracy, accept, min_gain, metric, guess):
    own = MeanMetric(lambda o, t: o.softmax(-1)[torch.arange(len(t)), t].double(), "own")
    targets, (current, candidate) = tables(seed, 2, accuracy)
    task = make_task(targets, metric=own if metric == "own" else metric)
    evaluator = TaskEvaluator(task, device="cpu")
    bar = evaluator.predictions(table(current), "val")
    predicted = {
        "none": None,
        "good": (candidate + current).numpy() / 2,
        "wrong": -candidate.numpy(),
    }[guess]
    found = {
        early: decide(
            TaskEvaluator(task, device="cpu"), table(candidate), "val", current=bar,
            rule=AcceptanceRule(accept, min_gain, early), predicted=predicted,
        )
        for early in (True, False)
    }  # fmt: skip
    assert found[True].accepted == found[False].accepted
    assert found[True].examples <= 2 * N  # undecided examples are seen again
    if found[True].value is None:
        assert not found[True].accepted
        sign = 1 if task.metric.higher_is_better else -1
        assert sign * found[False].value <= sign * found[True].bound
    else:
        assert found[True].value == found[False].value
        assert np.array_equal(
            found[True].predictions.per_example, found[False].predictions.per_example
        )


def test_a_rejected_candidate_costs_little_more_than_the_errors_it_may_make():
    targets, (current, candidate) = tables(1, 2, 0.8)
    candidate[:60] -= 9 * torch.nn.functional.one_hot(targets[:60], 3)
    task = make_task(targets)
    evaluator = TaskEvaluator(task)
    bar = evaluator.predictions(table(current), "val")
    n_errors = int((bar.per_example == 0).sum())
    found = decide(
        evaluator, table(candidate), "val", current=bar, rule=AcceptanceRule(),
        predicted=candidate.numpy(),
    )  # fmt: skip
    assert found.value is None
    assert n_errors + 1 <= found.examples <= n_errors + 1 + 64


def test_examples_that_the_batch_decides_are_decided_by_the_plain_batches():
    """Outputs move by 1e-5 with the batch's size, and one example lies on the edge."""
    targets, (current, candidate) = tables(2, 2, 0.9)
    edge = 77
    candidate[:] = current
    candidate[edge] = 0.0

    def predict(model, batch):
        outputs = model(batch[0]).clone()
        # Of a whole batch of the plain loop the target of the edge wins, of others it loses.
        plain = len(batch[0]) == 32 and int(batch[0][0]) % 32 == 0
        at = (batch[0] == edge).nonzero().flatten()
        outputs[at, targets[edge]] += 1e-5 if plain else -1e-5
        return outputs

    task = make_task(targets, predict=predict)
    bar = TaskEvaluator(task).predictions(table(current), "val")
    for predicted in (None, candidate.numpy()):
        early, plain = (
            decide(
                TaskEvaluator(task), table(candidate), "val", current=bar,
                rule=AcceptanceRule("ge", 0, e), predicted=predicted,
            )
            for e in (True, False)
        )  # fmt: skip
        assert plain.accepted
        assert (early.accepted, early.value) == (plain.accepted, plain.value)


def test_a_decision_that_was_cut_off_goes_on_where_it_was():
    targets, (current, candidate) = tables(3, 2, 0.9)
    task = make_task(targets)
    whole, resumed = TaskEvaluator(task), TaskEvaluator(task)
    bar = whole.predictions(table(current), "val")
    predicted = candidate.numpy()
    rule = AcceptanceRule("ge", -1.0)
    first = decide(whole, table(candidate), "val", current=bar, rule=rule, predicted=predicted)
    resumed.run(
        table(candidate), "val", np.argsort(margins(predicted, targets.numpy()))[:80].tolist()
    )
    second = decide(resumed, table(candidate), "val", current=bar, rule=rule, predicted=predicted)
    assert resumed.counters.examples == N
    assert (second.value, second.examples) == (first.value, first.examples)


def test_nan_is_refused_and_not_ranked():
    targets, (current, candidate) = tables(4, 2, 0.9)
    task = make_task(targets, metric="cross-entropy")
    evaluator = TaskEvaluator(task)
    bar = evaluator.predictions(table(current), "val")
    candidate[5] = float("nan")
    with pytest.raises(EvaluationError, match="is nan"):
        decide(evaluator, table(candidate), "val", current=bar, rule=AcceptanceRule())


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
    st.data(),
)
def test_bounding_unseen_terms_never_falls_below_the_full_sum(values, data):
    seen = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    bound = math.fsum(v if s else 1.0 for v, s in zip(values, seen, strict=True))
    assert bound >= math.fsum(values)


def test_a_gain_is_compared_without_rounding():
    assert 0.57 - 0.56 < 0.01  # in floating point the gain of one in a hundred is missed
    assert passes(57, 56, 100, AcceptanceRule("ge", 0.01))
    assert not passes(57, 56, 100, AcceptanceRule("gt", 0.01))
    assert passes(3.0, 4.0, 10, AcceptanceRule("gt", 0.05), higher_is_better=False)
