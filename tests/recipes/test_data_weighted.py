"""Fisher averaging of N models and RegMean against float64 by other code, and their identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stockpot.errors import RecipeError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.recipes import Uniform, data_weighted, verify
from stockpot.recipes.fisher import diagonal_fisher


def states(lab, n):
    return [{k: v.double().numpy() for k, v in load_file(p).items()} for p in lab.paths[:n]]


def weighed(lab, n, how, **options):
    recipe = Uniform(weigh=how, n_examples=200, **options)
    return recipe.cook(lab.paths[:n], lab.task, report=False).mixture


def test_fisher_averages_are_those_of_the_formula(lab) -> None:
    """Σ Fᵢθᵢ / Σ Fᵢ, Fᵢ divided by its norm and at least 1e-6; BatchNorm and counters apart."""
    found = weighed(lab, 3, "fisher")
    evaluator = TaskEvaluator(lab.task)
    dataset = lab.task.calibration_set
    fishers = []
    for path in lab.paths[:3]:
        f = diagonal_fisher(
            evaluator, from_state_dict(load_file(path)), dataset, n_examples=200, seed=0
        )
        norm = np.sqrt(sum((v**2).sum() for v in f.values()))
        fishers.append({name: np.maximum(v / norm, 1e-6) for name, v in f.items()})
    for name in fishers[0]:
        top = sum(f[name] * s[name] for f, s in zip(fishers, states(lab, 3), strict=True))
        expected = (top / sum(f[name] for f in fishers)).astype(np.float32)
        np.testing.assert_allclose(found.read(name).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_equal_information_gives_the_mean(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(evaluator, model, dataset, **options):
        return {name: np.full(spec.shape, 3.0) for name, spec in model.items()}

    monkeypatch.setattr(data_weighted, "diagonal_fisher", equal)
    found, mean = weighed(lab, 4, "fisher"), Uniform().cook(lab.paths[:4]).mixture
    for name in mean:
        np.testing.assert_allclose(found.read(name), mean.read(name), rtol=1e-6, atol=1e-9)


def test_regmean_is_the_least_squares_fit_to_the_outputs_of_all(lab) -> None:
    """Without shrinking, minus the bias: W = argmin Σ ‖Xᵢ·W − Xᵢ·Wᵢ‖² of the last layer."""
    context_of = Uniform(weigh="regmean", n_examples=600)
    x = torch.stack([lab.task.train_set[i][0] for i in range(600)]).double()
    inputs, outputs = [], []
    for state in states(lab, 3):
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 24), torch.nn.LayerNorm(24), torch.nn.ReLU()
        ).double()
        model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items() if k[0] != "3"})
        hidden = model(x).detach().numpy()
        inputs.append(hidden)
        outputs.append(hidden @ state["3.weight"].T)
    expected, *_ = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)
    context = _context(context_of, lab, 3)
    made = data_weighted.regression_mean(context, n_examples=600, seed=0, shrink=1.0)
    np.testing.assert_allclose(made["3.weight"], expected.T, rtol=1e-4, atol=1e-5)


def _context(recipe, lab, n):
    found = []

    class Peek(Exception):
        pass

    def solve(self, context):
        found.append(context)
        raise Peek

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Peek):
        patch.setattr(Uniform, "solve", solve)
        recipe.cook(lab.paths[:n], lab.task)
    return found[0]


def test_equal_weights_stay_and_equal_inputs_give_the_mean(lab) -> None:
    """The first layer sees the same inputs in all models, whose pixels are partly always zero."""
    copies = Uniform(weigh="regmean").cook([lab.paths[0]] * 2, lab.task, report=False).mixture
    first = load_file(lab.paths[0])
    for name, value in first.items():
        np.testing.assert_allclose(copies.read(name), value, rtol=1e-5, atol=1e-7)
    found, mean = weighed(lab, 4, "regmean"), Uniform().cook(lab.paths[:4]).mixture
    np.testing.assert_allclose(found.read("0.weight"), mean.read("0.weight"), rtol=1e-4, atol=1e-7)
    assert not np.allclose(found.read("3.weight"), mean.read("3.weight"), rtol=1e-3)


@pytest.mark.parametrize("how", ["fisher", "regmean"])
def test_what_is_saved_is_verified(lab, tmp_path, how: str) -> None:
    soup = Uniform(weigh=how, n_examples=50).cook(lab.paths[:3], lab.task)
    soup.save(tmp_path / "soup.safetensors")
    assert verify(tmp_path / "soup.safetensors") == []
    assert soup.chosen_on is None
    assert soup.scores["test"] is not None


def test_it_needs_data_and_no_other_weights(lab) -> None:
    with pytest.raises(RecipeError, match="--task"):
        Uniform(weigh="fisher").cook(lab.paths[:2])
    for options in ({"top": 2}, {"weights": (1.0,)}, {"coefficients": ("a=1",)}):
        with pytest.raises(RecipeError, match="give one of them"):
            Uniform(weigh="fisher", **options)
