from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as reference
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError
from stockpot.evaluate.compare import difference
from stockpot.evaluate.metrics import (
    Accuracy,
    CrossEntropy,
    MeanMetric,
    WholeMetric,
    metric_by_name,
)
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.tasks.classification import ClassificationTask

torch.manual_seed(0)
LOGITS, TARGETS = torch.randn(60, 3), torch.randint(0, 3, (60,))
GUESSES = LOGITS.argmax(-1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", reference.accuracy_score(TARGETS, GUESSES)),
        ("f1-macro", reference.f1_score(TARGETS, GUESSES, average="macro")),
        ("f1-weighted", reference.f1_score(TARGETS, GUESSES, average="weighted")),
        ("matthews", reference.matthews_corrcoef(TARGETS, GUESSES)),
        ("balanced-accuracy", reference.balanced_accuracy_score(TARGETS, GUESSES)),
        ("cohen-kappa", reference.cohen_kappa_score(TARGETS, GUESSES)),
        ("cross-entropy", reference.log_loss(TARGETS, LOGITS.double().softmax(-1))),
    ],
)
def test_agrees_with_scikit_learn(name, expected):
    assert metric_by_name(name).compute(LOGITS, TARGETS) == pytest.approx(expected, abs=1e-6)


def test_two_class_metrics_agree_with_scikit_learn():
    logits, targets = LOGITS[:, :2], TARGETS % 2
    guesses = logits.argmax(-1)
    f1 = reference.f1_score(targets, guesses)
    both = (reference.accuracy_score(targets, guesses) + f1) / 2
    assert metric_by_name("f1").compute(logits, targets) == pytest.approx(f1, abs=1e-6)
    assert metric_by_name("accuracy-and-f1").compute(logits, targets) == pytest.approx(both)


def test_a_row_with_nan_is_wrong_whatever_its_argmax():
    logits = torch.tensor([[float("nan"), 1.0]])
    assert Accuracy().compute(logits, torch.tensor([0])) == 0
    assert Accuracy().compute(logits, torch.tensor([1])) == 0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_row_with_nan_is_an_answer_that_no_class_is(n_classes):
    logits, targets = LOGITS[:, :n_classes].clone(), TARGETS % n_classes
    logits[::4, 0] = float("nan")  # argmax takes the place of a NaN for the largest
    guesses = torch.where(logits.isnan().any(-1), n_classes, logits.argmax(-1))
    labels = list(range(n_classes))
    f1 = {
        f"f1-{average}": reference.f1_score(targets, guesses, labels=labels, average=average)
        for average in ("macro", "weighted")
    }
    recalls = reference.recall_score(targets, guesses, labels=labels, average=None)
    for name, expected in {
        **f1,
        "accuracy": reference.accuracy_score(targets, guesses),
        "balanced-accuracy": recalls.mean(),
        "matthews": reference.matthews_corrcoef(targets, guesses),
        "cohen-kappa": reference.cohen_kappa_score(targets, guesses),
    }.items():
        found = metric_by_name(name).compute(logits, targets)
        assert found == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("name", ["f1-macro", "balanced-accuracy", "matthews", "auroc"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_an_output_is_refused_by_metrics_that_are_no_means(name, label):
    targets = TARGETS.clone()
    targets[5] = label
    with pytest.raises(EvaluationError, match=f"a label such as {label}, and .* 3 outputs"):
        metric_by_name(name).compute(LOGITS, targets)


def test_a_function_that_fails_is_named_and_a_resample_in_which_it_fails_does_not_count():
    def area(outputs, targets):
        if len(targets.unique()) < 2:
            raise ValueError("only one class present")
        return reference.roc_auc_score(targets, outputs[:, 1])

    metric = WholeMetric(area, "area")
    with pytest.raises(EvaluationError, match=r"the metric area fails: .*only one class present"):
        metric.compute(LOGITS[:, :2], torch.zeros(60, dtype=torch.long))
    rare = torch.zeros(60, dtype=torch.long)
    rare[:2] = 1  # of 200 resamples some 26 hold none of them
    data = Split(TensorDataset(LOGITS[:, :2], rare), role="held-out")
    task = ClassificationTask(torch.nn.Identity, {"val": data}, metric=metric)
    with TaskEvaluator(task) as evaluator:
        one = evaluator.from_outputs(LOGITS[:, :2].numpy(), "val")
        score = evaluator.score_of(one, "val")
        other = evaluator.from_outputs(LOGITS[:, [1, 0]].numpy(), "val")
    assert score.value == area(LOGITS[:, :2], rare)
    assert 0 <= score.low <= score.value <= score.high <= 1
    gap = difference(one, other, "val")
    assert gap.low < gap.value < gap.high


def test_the_mean_does_not_depend_on_the_order_of_examples():
    order = torch.as_tensor(np.random.default_rng(0).permutation(60))
    metric = CrossEntropy()
    assert metric.compute(LOGITS, TARGETS) == metric.compute(LOGITS[order], TARGETS[order])


def test_a_metric_of_the_users_own():
    top2 = MeanMetric(
        lambda outputs, targets: (outputs.topk(2).indices == targets[:, None]).any(-1).double(),
        "top-2",
    )
    assert Accuracy().compute(LOGITS, TARGETS) < top2.compute(LOGITS, TARGETS) < 1


def logits_of(guesses: list[int], n_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(guesses), n_classes).float() * 3 - 1


CASES = {
    "constant": (logits_of([1] * 40, 2), [1] * 27 + [0] * 13),
    "constant of three": (logits_of([2] * 30, 3), [0, 1, 2] * 10),
    "constant and right": (logits_of([1] * 6, 2), [1] * 6),
    "constant and wrong": (logits_of([0] * 6, 2), [1] * 6),
    "one example, right": (logits_of([1], 3), [1]),
    "one example, wrong": (logits_of([0], 3), [1]),
    "absent class": (LOGITS, [0 if t == 2 else int(t) for t in TARGETS]),
    "four of ten classes": (torch.randn(200, 10), [int(i) % 4 for i in torch.randperm(200)]),
    "all tied": (torch.zeros(12, 3), [0, 1, 2] * 4),
    "tied in pairs": (torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]] * 4), [0, 1, 1] * 4),
    "perfect": (logits_of([0, 1, 2] * 5, 3), [0, 1, 2] * 5),
    "all wrong": (logits_of([1, 2, 0] * 5, 3), [0, 1, 2] * 5),
}


def mean_area(targets: np.ndarray, shares: np.ndarray) -> float:
    """One against the rest, over the classes that are held."""
    held = [c for c in np.unique(targets) if 0 < (targets == c).sum() < len(targets)]
    areas = [reference.roc_auc_score(targets == c, shares[:, c]) for c in held]
    return float(np.mean(areas)) if areas else float("nan")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # scikit-learn warns of most of these
def test_built_in_metrics_are_those_of_scikit_learn_at_the_edges(case):
    logits, listed = CASES[case]
    targets = np.array(listed)
    guesses = logits.argmax(-1).numpy()
    shares = softmax(logits.double().numpy(), axis=-1)
    expected = {
        "accuracy": reference.accuracy_score(targets, guesses),
        "balanced-accuracy": reference.balanced_accuracy_score(targets, guesses),
        "f1-macro": reference.f1_score(targets, guesses, average="macro", zero_division=0),
        "f1-weighted": reference.f1_score(targets, guesses, average="weighted", zero_division=0),
        "matthews": reference.matthews_corrcoef(targets, guesses),
        "cohen-kappa": reference.cohen_kappa_score(targets, guesses),
        "cross-entropy": reference.log_loss(targets, shares, labels=range(logits.shape[1])),
        "auroc": mean_area(targets, shares),
    }
    if logits.shape[1] == 2:
        f1 = reference.f1_score(targets, guesses, zero_division=0)
        expected |= {"f1": f1, "accuracy-and-f1": (expected["accuracy"] + f1) / 2}
    for name, value in expected.items():
        found = metric_by_name(name).compute(logits, torch.tensor(listed))
        assert found == pytest.approx(value, abs=1e-12, nan_ok=True), name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 40))
@pytest.mark.filterwarnings("ignore")
def test_built_in_metrics_are_those_of_scikit_learn_on_any_examples(seed, n_classes, n):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (n, n_classes), generator=generator).float()
    targets = torch.randint(0, n_classes, (n,), generator=generator)
    guesses = logits.argmax(-1)
    for name, value in {
        "balanced-accuracy": reference.balanced_accuracy_score(targets, guesses),
        "matthews": reference.matthews_corrcoef(targets, guesses),
        "f1-macro": reference.f1_score(targets, guesses, average="macro", zero_division=0),
        "auroc": mean_area(targets.numpy(), softmax(logits.double().numpy(), axis=-1)),
    }.items():
        found = metric_by_name(name).compute(logits, targets)
        assert found == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_constant_guess_has_no_matthews_correlation(n):
    assert (
        metric_by_name("matthews").compute(torch.tensor([[0.0, 1.0]] * n), torch.arange(n) % 3 % 2)
        == 0
    )


def test_auroc_does_not_change_when_all_logits_do():
    metric = metric_by_name("auroc")
    inside = LOGITS.double().softmax(-1).float()  # no probabilities to the metric
    assert metric.compute(LOGITS, TARGETS) == pytest.approx(metric.compute(LOGITS + 10, TARGETS))
    assert metric.compute(inside, TARGETS) == pytest.approx(metric.compute(inside + 10, TARGETS))


@pytest.mark.parametrize(
    "name", ["accuracy", "cross-entropy", "f1", "f1-macro", "matthews", "auroc", "accuracy-and-f1"]
)
@pytest.mark.parametrize(
    "targets", [torch.ones(60, 3), torch.ones(60, 3, dtype=torch.long), torch.rand(60)]
)
def test_several_labels_per_example_are_refused_by_name(name, targets):
    with pytest.raises(EvaluationError, match=r"compares logits \(N, C\).*MeanMetric"):
        metric_by_name(name).compute(LOGITS, targets)


def test_f1_of_three_classes_says_which_to_take():
    with pytest.raises(EvaluationError, match="f1-macro or f1-weighted"):
        metric_by_name("f1").compute(LOGITS, TARGETS)


def test_intervals_of_metrics_of_absent_classes_hold_the_value():
    logits, listed = CASES["four of ten classes"]
    logits = logits + 4 * torch.nn.functional.one_hot(torch.tensor(listed), 10)
    data = TensorDataset(logits, torch.tensor(listed))
    task = ClassificationTask(
        build=torch.nn.PReLU, splits={"shift": Split(data, role="shift")}, metric="auroc"
    )
    found = TaskEvaluator(task).score(from_state_dict({"weight": torch.ones(1)}), "shift")
    assert 0.9 < found.low < found.value < found.high


@pytest.mark.parametrize(("name", "meant"), [("acuracy", "accuracy"), ("mathews", "matthews")])
def test_a_metric_that_is_nearly_known_is_suggested(name, meant):
    with pytest.raises(EvaluationError, match=f"did you mean '{meant}'"):
        metric_by_name(name)
