from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from stockpot.evaluate.metrics import Accuracy, CrossEntropy, MeanMetric, metric_by_name

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
