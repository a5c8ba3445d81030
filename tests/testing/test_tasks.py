"""Each check passes a sound task and fails one that is wrong in just its way."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import stockpot
from stockpot.evaluate.metrics import MeanMetric
from stockpot.testing import TASK_CHECKS, tasks

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, (X[:, 0] > 0).long())


def sound(**changes: Any) -> stockpot.ClassificationTask:
    options: dict[str, Any] = {
        "build": lambda: nn.Linear(3, 2),
        "splits": {"val": stockpot.Split(DATA)},
        "train_set": DATA,
        "version": "1",
    }
    return stockpot.ClassificationTask(**{**options, **changes})


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.__name__)
def test_a_sound_task_passes(check: tasks.TaskCheck) -> None:
    check(sound)


class InBatch(nn.Module):
    """Depends on the other examples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x - x.mean(0))


class Counting(InBatch):
    """Changes when it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.linear(x)


class Hidden(InBatch):
    """Draws a part of itself that is not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.randn(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.secret


@dataclasses.dataclass(frozen=True)
class Backwards(stockpot.ClassificationTask):
    def batches(self, dataset, indices=None, *, batch_size=None):
        order = range(len(dataset)) if indices is None else indices
        return super().batches(dataset, sorted(order), batch_size=batch_size)


def mean_metric(function: Callable[..., torch.Tensor], **options: Any) -> MeanMetric:
    return MeanMetric(function, "own", **options)


counter = itertools.count()
WRONG: dict[str, Callable[[], Any]] = {
    "its_parts_are_those_of_a_task": lambda: object(),
    "splits_have_roles_and_examples": lambda: sound(
        splits={"val": stockpot.Split(TensorDataset(X[:0], X[:0]))}
    ),
    "every_example_has_one_row": lambda: sound(predict=lambda model, batch: model(batch[0]).T),
    "batches_follow_the_indices": lambda: Backwards(
        build=lambda: nn.Linear(3, 2), splits={"val": stockpot.Split(DATA)}
    ),
    "predictions_do_not_depend_on_the_batch": lambda: sound(build=InBatch),
    "predictions_follow_the_weights": lambda: sound(build=Hidden),
    "predicting_leaves_the_model_alone": lambda: sound(build=Counting),
    "metric_is_a_number_and_says_what_it_is": lambda: sound(
        metric=mean_metric(lambda outputs, targets: 2.0 + targets.double(), high=1.0)
    ),
    "the_loss_trains": lambda: sound(loss=lambda outputs, targets: outputs.mean() * 0),
    "making_it_again_gives_the_same_task": lambda: sound(version=str(next(counter))),
}


@pytest.mark.parametrize("name", [check.__name__ for check in TASK_CHECKS])
def test_a_task_that_is_wrong_is_refused_by_the_check_for_it(name: str) -> None:
    with pytest.raises(AssertionError):
        getattr(tasks, name)(WRONG[name])


def test_the_suite_names_the_check_that_failed() -> None:
    with pytest.raises(AssertionError, match="predictions_do_not_depend_on_the_batch: val"):
        tasks.task_conformance(WRONG["predictions_do_not_depend_on_the_batch"])
