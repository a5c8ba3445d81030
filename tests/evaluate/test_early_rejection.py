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
from stockpot.recipes import Greedy
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.general import GeneralTask

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


class Row(torch.nn.Module):
    """Its weights are one value per example, which it returns."""

    def __init__(self):
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(N))

    def forward(self, x):
        return self.values[x][:, None]


def first_output(outputs, targets):
    return outputs[:, 0].double()


def row_task(metric):
    data = TensorDataset(torch.arange(N), torch.zeros(N, dtype=torch.long))
    return GeneralTask(
        build=Row, splits={"val": Split(data, fingerprint="rows")}, metric=metric,
        batch_size=16, version="1",
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    low=st.sampled_from([-3.0, 0.0, -np.inf]),
    high=st.sampled_from([1.0, 5.0, np.inf]),
    higher=st.booleans(),
    accept=st.sampled_from(["ge", "gt"]),
    min_gain=st.sampled_from([0.0, 0.01]),
    order=st.sampled_from(["score", "random", "given"]),
)
def test_the_soup_is_that_of_the_plain_loop_for_any_metric(
    seed, low, high, higher, accept, min_gain, order
):
    rng = np.random.default_rng(seed)
    inside = np.clip(rng.normal(0.5, 1.5, (6, N)).round(1), max(low, -9), min(high, 9))
    models = [from_state_dict({"values": torch.from_numpy(row).float()}) for row in inside]
    metric = MeanMetric(first_output, "m", higher_is_better=higher, low=low, high=high)
    soups = [
        Greedy(accept=accept, min_gain=min_gain, order=order, early_rejection=early).cook(
            models, evaluator=TaskEvaluator(row_task(metric), device="cpu"), report=False
        )
        for early in (True, False)
    ]
    assert soups[0].mixture.key == soups[1].mixture.key
    assert [s.accepted for s in soups[0].steps] == [s.accepted for s in soups[1].steps]
    can_stop = np.isfinite(high if higher else low)
    assert can_stop or all(step.score is not None for step in soups[0].steps)


def test_values_outside_the_declared_range_are_an_error_that_names_the_example():
    """Rewards of 0 to 5, taken for shares, once made greedy leave out what it should keep."""
    rewards = torch.full((N,), 2.0)
    rewards[37] = 5.0
    given = from_state_dict({"values": rewards})
    declared = MeanMetric(first_output, "reward", low=0.0, high=1.0)
    evaluator = TaskEvaluator(row_task(declared), device="cpu")
    with pytest.raises(
        EvaluationError, match=r"reward of example 0 on val is 2\.0, outside .* 0 to 1"
    ):
        evaluator.score(given, "val")
    nearly = MeanMetric(first_output, "reward", low=0.0, high=4.0)
    evaluator = TaskEvaluator(row_task(nearly), device="cpu")
    bar = evaluator.predictions(from_state_dict({"values": torch.zeros(N)}), "val")
    with pytest.raises(EvaluationError, match=r"reward of example 37 on val is 5\.0"):
        decide(evaluator, given, "val", current=bar, rule=AcceptanceRule())


@pytest.mark.parametrize(
    ("values", "higher"), [([4.0, 0.5], True), ([-1.0, -2.0], False)], ids=["rewards", "nll"]
)
def test_a_metric_without_a_declared_range_is_scored_in_full(values, higher):
    models = [from_state_dict({"values": torch.full((N,), v)}) for v in values]
    metric = MeanMetric(first_output, "m", higher_is_better=higher)
    evaluator = TaskEvaluator(row_task(metric), device="cpu")
    bar = evaluator.predictions(models[0], "val")
    found = decide(evaluator, models[1], "val", current=bar, rule=AcceptanceRule())
    assert (found.examples, found.value) == (N, values[1])
    assert found.accepted is not higher
