from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from stockpot.analysis.space import WeightSpace
from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.metrics import MeanMetric
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients
from stockpot.tasks.classification import ClassificationTask


@pytest.fixture
def space(lab) -> WeightSpace:
    return WeightSpace(
        Ingredients(lab.runs, base=lab.base), TaskEvaluator(lab.task, device="cpu"), "val"
    )


def weights(space: WeightSpace, point) -> torch.Tensor:
    mixture = space.mixture(point)
    return torch.cat([mixture.read(name).reshape(-1) for name in sorted(mixture)])


def test_ends_and_corners_are_the_models_themselves(space, lab) -> None:
    run, other = space.ingredient(1), space.ingredient(3)
    content = open_checkpoint(lab.runs[1]).fingerprint
    assert space.mixture(run).key == content
    assert space.mixture(space.between(run, other, 0.0)).key == content
    assert space.mixture(space.at("corner", [1e-12, 1 + 1e-11, 0, 0, 0])).key == content
    assert space.mixture(space.origin).key == open_checkpoint(lab.base).fingerprint


def test_a_place_off_the_simplex_takes_the_rest_from_the_base(space) -> None:
    base, run = weights(space, space.origin), weights(space, space.ingredient(2))
    found = weights(space, space.at("beyond", [0, 0, 1.5, 0, 0]))
    assert torch.allclose(found, base + 1.5 * (run - base), atol=1e-6)


def test_the_mean_of_three_needs_no_base(space) -> None:
    mixture = space.mixture(space.mean("three", [0, 1, 4]))
    assert mixture.coefficients.vectors[""][-1] == 0.0


def test_reading_twice_is_evaluated_once_and_counted_once(space) -> None:
    middle = space.between(space.ingredient(0), space.ingredient(1), 0.5)
    one, other = space.measure(middle), space.measure(middle)
    assert one == other
    assert (space.evaluated, space.evaluator.counters.examples) == (1, 500)


def test_distances_of_the_geometry_are_those_of_the_weights(space) -> None:
    moves = [weights(space, space.ingredient(i)) - weights(space, space.origin) for i in (0, 1)]
    gram = space.geometry.gram
    assert gram[0, 1] == pytest.approx(float(moves[0].double() @ moves[1].double()), rel=1e-4)
    assert sum(space.geometry.layers.values()) == pytest.approx(gram)


def test_without_a_base_there_is_no_space(lab) -> None:
    with pytest.raises(RecipeError, match="--base"):
        WeightSpace(Ingredients(lab.runs), TaskEvaluator(lab.task, device="cpu"), "val")


def test_outputs_that_are_no_logits_are_refused() -> None:
    def error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs()

    task = ClassificationTask(
        build=lambda: torch.nn.Linear(2, 1),
        splits={"val": Split(TensorDataset(torch.ones(4, 2), torch.ones(4)), role="held-out")},
        metric=MeanMetric(error, "absolute error", higher_is_better=False, low=0.0),
        version="1",
    )
    state = torch.nn.Linear(2, 1).state_dict()
    space = WeightSpace(Ingredients([state], base=state), TaskEvaluator(task, device="cpu"), "val")
    with pytest.raises(EvaluationError, match="classifiers"):
        space.measure(space.origin)


def test_weights_that_are_not_finite_are_named(lab, space) -> None:
    state = {n: open_checkpoint(lab.base).read(n) for n in open_checkpoint(lab.base)}
    state["2.bias"] = torch.full((10,), 3e38)
    state["2.weight"] = state["2.weight"] * 1e38
    given = Ingredients([state], base=lab.base)
    broken = WeightSpace(given, TaskEvaluator(lab.task, device="cpu"), "val")
    with pytest.raises(EvaluationError, match="of 500 outputs of <memory 0> on val are not"):
        broken.measure(broken.ingredient(0))


def test_the_geometry_is_of_what_the_model_calls_parameters(tmp_path) -> None:
    """A buffer of any name is left out where the model is known."""

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)
            self.norm = torch.nn.BatchNorm1d(2)
            self.register_buffer("typical_size", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.linear(x / self.typical_size))

    task = ClassificationTask(
        build=Scaled,
        splits={"val": Split(TensorDataset(torch.randn(8, 2), torch.arange(8) % 2))},
        version="1",
    )
    torch.manual_seed(0)
    base = Scaled().state_dict()
    run = {n: v + torch.randn(v.shape) if v.is_floating_point() else v for n, v in base.items()}
    space = WeightSpace(Ingredients([run], base=base), TaskEvaluator(task, device="cpu"), "val")
    names = ["linear.weight", "linear.bias", "norm.weight", "norm.bias"]
    expected = sum(float((run[n] - base[n]).double().square().sum()) for n in names)
    assert space.geometry.gram[0, 0] == pytest.approx(expected)
    assert space.geometry.n_tensors == len(names)
