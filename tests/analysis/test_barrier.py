from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stockpot.analysis.barrier import Barrier, barrier, barrier_between
from stockpot.evaluate.metrics import MeanMetric
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.base import Checkpoint
from stockpot.formats.memory import from_state_dict
from stockpot.tasks.classification import ClassificationTask

ALPHAS = np.linspace(0, 1, 11).tolist()


def test_a_straight_line_has_no_barrier() -> None:
    losses = [0.5 + 0.25 * a for a in ALPHAS]
    assert barrier(ALPHAS, losses).height == pytest.approx(0, abs=1e-12)


def test_a_path_below_the_line_has_none_either() -> None:
    assert barrier(ALPHAS, [(a - 0.5) ** 2 for a in ALPHAS]).height == 0


def test_a_hump_is_measured_from_the_line_between_unequal_ends() -> None:
    hump = [1.0 + a + 2 * a * (1 - a) for a in ALPHAS]
    found = barrier(ALPHAS, hump)
    assert found.alpha == pytest.approx(0.5)
    assert found.height == pytest.approx(0.5)


def test_adding_a_linear_loss_changes_nothing() -> None:
    losses = np.random.default_rng(0).random(11)
    tilted = losses + 3 - 2 * np.array(ALPHAS)
    one, other = barrier(ALPHAS, losses.tolist()), barrier(ALPHAS, tilted.tolist())
    assert one.alpha == other.alpha
    assert one.height == pytest.approx(other.height)


@pytest.mark.parametrize(
    ("alphas", "losses"),
    [([0, 1], [1]), ([0.1, 1], [1, 1]), ([0, 0.9], [1, 1]), ([0, 0.5, 0.5, 1], [1, 1, 1, 1])],
)
def test_points_that_are_no_path_are_refused(alphas: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        barrier(alphas, losses)


def test_the_result_says_where() -> None:
    assert barrier([0, 0.25, 1], [0, 5, 0]) == Barrier(5, 0.25)


FACTORS = {0.0: 1.0, 0.25: -2.0, 1.0: 2.0}
"""What the weights are multiplied by: right at both ends, and wrong between them."""


def labelled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (60, 4), weights (3, 4), and the classes that they give."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(60, 4, generator=generator), torch.randn(3, 4, generator=generator)
    return x, weight, (x @ weight.T).argmax(1)


def measured(targets: torch.Tensor, metric: str | MeanMetric) -> Barrier | None:
    x, weight, _ = labelled()
    task = ClassificationTask(
        build=lambda: torch.nn.Linear(4, 3, bias=False),
        splits={"val": Split(TensorDataset(x, targets))},
        metric=metric,
    )

    def at(alpha: float) -> Checkpoint:
        return from_state_dict({"weight": FACTORS[alpha] * weight})

    return barrier_between(TaskEvaluator(task, device="cpu"), "val", at, list(FACTORS))


def test_between_two_models_it_is_that_of_their_mean_cross_entropy() -> None:
    x, weight, y = labelled()
    first, middle, last = (float(cross_entropy(f * x @ weight.T, y)) for f in FACTORS.values())
    found = measured(y, "accuracy")
    assert found is not None
    assert found.alpha == 0.25
    assert found.height == pytest.approx(middle - 0.75 * first - 0.25 * last)


def test_models_whose_outputs_are_no_logits_over_classes_have_none() -> None:
    def error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs()

    metric = MeanMetric(error, name="error", higher_is_better=False)
    assert measured(labelled()[2].float(), metric) is None
