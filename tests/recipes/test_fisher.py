from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from stockpot.errors import RecipeError
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.recipes import WiseFT
from stockpot.recipes.fisher import diagonal_fisher, normalised
from stockpot.recipes.record import verify
from stockpot.tasks.classification import ClassificationTask


def linear_task(n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    data = TensorDataset(x, torch.zeros(n, dtype=torch.long))
    return ClassificationTask(
        build=lambda: torch.nn.Linear(3, 2), splits={"val": Split(data)}, batch_size=8
    )


def test_it_estimates_the_exact_fisher_of_a_logistic_model():
    """F = E_x E_y (∂ log p(y|x)/∂θ)², with the expectation over y exact."""
    task = linear_task(4096)
    weights = {"weight": torch.tensor([[0.5, -1.0, 0.0], [0.0, 0.3, 1.0]]), "bias": torch.zeros(2)}
    found = diagonal_fisher(
        TaskEvaluator(task, device="cpu"),
        from_state_dict(weights),
        task.splits["val"].dataset,
        n_examples=4096,
    )
    x = task.splits["val"].dataset.tensors[0].double()
    p = (x @ weights["weight"].double().T).softmax(1)
    # ∂ log p(y)/∂w_c = (1[y = c] − p_c)·x: its second moment over y is p_c(1 − p_c)·x².
    variance = p * (1 - p)
    np.testing.assert_allclose(found["weight"], (variance.T @ x.square()) / len(x), rtol=0.12)
    np.testing.assert_allclose(found["bias"], variance.mean(0), rtol=0.12)


def test_the_labels_of_the_data_are_not_looked_at():
    task, other = linear_task(), linear_task()
    other.splits["val"].dataset.tensors[1].fill_(1)
    weights = from_state_dict(task.build().state_dict())
    one, two = (
        diagonal_fisher(TaskEvaluator(t, device="cpu"), weights, t.splits["val"].dataset)
        for t in (task, other)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_floor_and_a_mean_of_one():
    found = normalised({"a": np.array([0.0, 4.0]), "b": np.array([0.0, 4.0])}, floor=1e-3)
    assert found["a"].tolist() == [1e-3, 2.0]


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_a_floor_must_be_positive(floor):
    with pytest.raises(RecipeError, match="expected more than 0"):
        normalised({"a": np.ones(1)}, floor=floor)


def test_a_model_that_nothing_changes_is_refused():
    with pytest.raises(RecipeError, match="no weight changes"):
        normalised({"a": np.zeros(1)}, floor=1e-6)


def test_no_examples_are_refused():
    task = linear_task()
    with pytest.raises(RecipeError, match="at least one example"):
        diagonal_fisher(
            TaskEvaluator(task),
            from_state_dict(task.build().state_dict()),
            TensorDataset(torch.empty(0)),
        )


def test_a_weighted_point_is_the_weighted_mean_of_every_element(lab):
    evaluator = TaskEvaluator(lab.task, device="cpu")
    recipe = WiseFT(alpha=0.3, fisher=True, n_fisher=16, seed=3)
    soup = recipe.cook(lab.paths[:1], base=lab.base, evaluator=evaluator, choose_on="held-out")
    ends = [load_file(lab.base), load_file(lab.paths[0])]
    f, g = (
        normalised(
            diagonal_fisher(
                evaluator, from_state_dict(w), lab.task.train_set, n_examples=16, seed=3
            ),
            floor=1e-6,
        )
        for w in ends
    )
    for name in f:
        a, b = (0.7 * f[name], 0.3 * g[name])
        x, y = (w[name].double().numpy() for w in ends)
        expected = (a * x + b * y) / (a + b)
        np.testing.assert_allclose(soup.mixture.read(name).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_equal_models_stay_what_they_are(bn_lab):
    recipe = WiseFT(alpha=0.3, fisher=True, n_fisher=4)
    soup = recipe.cook([bn_lab.base], bn_lab.task, base=bn_lab.base, choose_on="held-out")
    for name, value in load_file(bn_lab.base).items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(soup.mixture.read(name), value)


def test_weighted_soups_of_batchnorm_networks_are_recalibrated_saved_and_verified(bn_lab, tmp_path):
    recipe = WiseFT(alphas=(), fisher=True, n_fisher=4)
    soup = recipe.cook(bn_lab.paths[:1], bn_lab.task, base=bn_lab.base)
    out = tmp_path / "soup.safetensors"
    soup.save(out)
    assert verify(out) == []
    if 0 < soup.details.to_json()["alpha"] < 1:
        assert {"0.weight", "1.running_mean"} <= set(soup.mixture.overrides)
        assert "1.running_mean" not in (soup.scored_as.overrides or ())
