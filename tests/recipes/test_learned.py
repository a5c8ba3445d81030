"""Learned soups of small real classifiers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.learned import Learned
from stockpot.recipes.simple import Uniform
from stockpot.tasks.classification import ClassificationTask


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[
        order
    ]


@pytest.fixture(scope="module")
def states() -> list[dict[str, torch.Tensor]]:
    """Five fine-tunes of one base; the fourth with a learning rate that ruins it."""
    x, y = digits()
    torch.manual_seed(0)
    base = make_model()
    fit(base, x[:200], y[:200], lr=0.05, steps=60, seed=0)
    found = []
    for seed, lr in enumerate([0.02, 0.05, 0.1, 8.0, 0.03]):
        model = make_model()
        model.load_state_dict(base.state_dict())
        fit(model, x[200:600], y[200:600], lr=lr, steps=60, seed=seed)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    return found


def fit(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, lr: float, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (32,), generator=generator)
        loss = nn.functional.cross_entropy(model.train()(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make_task() -> ClassificationTask:
    x, y = digits()
    return ClassificationTask(
        make_model,
        {
            "val": Split(TensorDataset(x[600:1200], y[600:1200]), role="held-out"),
            "test": Split(TensorDataset(x[1200:], y[1200:]), role="test"),
        },
        batch_size=100,
        calibration_set=TensorDataset(x[200:600], y[200:600]),
    )


@pytest.mark.parametrize("by", ["model", "layer", "tensor"])
def test_the_loss_falls_and_the_ruined_ingredient_loses_its_share(
    states: list[dict[str, torch.Tensor]], by: str
) -> None:
    soup = Learned(by=by, n_epochs=15, starts=("uniform",)).cook(states, make_task())
    assert soup.details.losses[-1] < 0.8 * soup.details.losses[0]
    learned = soup.details.learned_coefficients
    groups = [learned] if by == "model" else list(learned.values())
    ruined = [list(group.values())[3] for group in groups]
    assert min(ruined) < 0.1
    for group in groups:
        assert sum(group.values()) == pytest.approx(1, abs=1e-9)


def test_the_soup_is_never_worse_on_the_deciding_part_than_uniform_and_greedy(
    states: list[dict[str, torch.Tensor]],
) -> None:
    for seed in range(3):
        soup = Learned(n_epochs=6, seed=seed).cook(states, make_task())
        parts = soup.details.parts
        deciding = {name: part["deciding"] for name, part in parts.items()}
        assert deciding[soup.details.taken] == max(deciding.values())
        if soup.details.taken != "learned":
            assert any("is taken" in note for note in soup.notes)


def test_parts_are_disjoint_and_the_greedy_soup_is_chosen_on_the_fitting_part(
    states: list[dict[str, torch.Tensor]],
) -> None:
    soup = Learned(n_epochs=2, deciding=0.25).cook(states, make_task())
    assert (soup.details.n_fitting, soup.details.n_deciding) == (450, 150)


def test_another_held_out_split_can_decide_and_all_of_the_first_fits(
    states: list[dict[str, torch.Tensor]],
) -> None:
    x, y = digits()
    splits = {
        "val": Split(TensorDataset(x[600:1000], y[600:1000])),
        "decide": Split(TensorDataset(x[1000:1200], y[1000:1200])),
        "test": Split(TensorDataset(x[1200:], y[1200:]), role="test"),
    }
    task = ClassificationTask(make_model, splits, batch_size=100)
    evaluator = TaskEvaluator(task)
    soup = Learned(n_epochs=3, decide_on="decide").cook(states, evaluator=evaluator)
    assert (soup.details.n_fitting, soup.details.n_deciding) == (400, 200)
    assert soup.chosen_on == "val"
    assert (
        soup.details.parts[soup.details.taken]["deciding"]
        == evaluator.score(soup.scored_as, "decide").value
    )


def test_beta_is_recorded_and_stays_one_when_it_is_not_learned(
    states: list[dict[str, torch.Tensor]],
) -> None:
    free = Learned(n_epochs=5, starts=("uniform",)).cook(states, make_task())
    fixed = Learned(n_epochs=5, starts=("uniform",), learn_beta=False).cook(states, make_task())
    assert free.details.beta != 1.0
    assert fixed.details.beta == 1.0


@pytest.mark.parametrize("constraint", ["softmax", "free", "hyperplane"])
def test_mini_batches_of_adamw_lower_the_loss_under_each_constraint(
    states: list[dict[str, torch.Tensor]], constraint: str
) -> None:
    recipe = Learned(
        constraint=constraint, optimiser="adamw", batch_size=75, n_epochs=8, starts=("uniform",)
    )  # fmt: skip
    losses = recipe.cook(states, make_task()).details.losses
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_a_number_ends_the_descent_with_the_remedy(
    states: list[dict[str, torch.Tensor]],
) -> None:
    options = {"constraint": "free", "optimiser": "adamw", "starts": ("uniform",)}
    soup = Learned(lr=50.0, **options).cook(states, make_task())
    assert soup.details.taken == "greedy"
    assert any("no number after" in note and "--lr" in note for note in soup.notes)
    with pytest.raises(EvaluationError, match="softmax"):
        Learned(lr=1e30, **options).cook(states, make_task())


@pytest.mark.parametrize("constraint", ["free", "hyperplane"])
def test_negative_coefficients_of_a_batchnorm_model_do_not_end_the_fit(
    states: list[dict[str, torch.Tensor]], constraint: str
) -> None:
    soup = Learned(constraint=constraint, by="layer", n_epochs=15).cook(states, make_task())
    for epochs in soup.details.epochs.values():
        assert all(math.isfinite(epoch["loss"]) for epoch in epochs)
    parts = soup.details.parts
    assert parts["learned"]["fitting"] >= parts["uniform"]["fitting"]


def test_an_interrupted_run_continues_to_the_same_soup_and_repeats_no_evaluation(
    states: list[dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stockpot.recipes.learned.objective import MixtureLoss

    recipe = Learned(n_epochs=6)
    whole = recipe.cook(states, evaluator=TaskEvaluator(make_task(), cache=tmp_path / "whole"))
    plain, calls = MixtureLoss.value, []

    def dying(self, *args):
        calls.append(1)
        if len(calls) in (3, 8):
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(MixtureLoss, "value", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recipe.cook(states, evaluator=TaskEvaluator(make_task(), cache=tmp_path / "killed"))
    resumed = recipe.cook(states, evaluator=TaskEvaluator(make_task(), cache=tmp_path / "killed"))
    assert resumed.details.learned_coefficients == whole.details.learned_coefficients
    assert resumed.details.epochs == whole.details.epochs
    assert resumed.scores == whole.scores
    n_evaluated = len(calls) - 2
    calls.clear()
    recipe.cook(states, evaluator=TaskEvaluator(make_task(), cache=tmp_path / "killed"))
    assert calls == []
    assert n_evaluated > 6


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    wanted = nn.functional.one_hot(targets, outputs.shape[-1])
    return ((outputs.softmax(-1) - wanted) ** 2).sum(-1).mean()


def test_a_fit_of_another_loss_is_not_taken_for_one_that_is_in_the_cache(
    states: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    plain, recipe = make_task(), Learned(n_epochs=3)
    other = dataclasses.replace(plain, loss=squared, version=plain.version)
    recipe.cook(states, evaluator=TaskEvaluator(plain, cache=tmp_path))
    cached = recipe.cook(states, evaluator=TaskEvaluator(other, cache=tmp_path))
    fresh = recipe.cook(states, evaluator=TaskEvaluator(other))
    assert cached.details.losses == fresh.details.losses
    assert cached.details.learned_coefficients == fresh.details.learned_coefficients


@pytest.mark.parametrize("base", [None, 3])
def test_a_fit_with_other_tensors_that_are_copied_is_not_taken_from_the_cache(
    states: list[dict[str, torch.Tensor]], tmp_path: Path, base: int | None
) -> None:
    # What is excluded comes from the first model, or from the base.
    def cook(order: list[int], base: int | None, cache: Path | None):
        with TaskEvaluator(make_task(), cache=cache) as evaluator:
            soup = Learned(n_epochs=3, starts=("uniform",)).cook(
                [states[i] for i in order],
                base=None if base is None else states[base],
                evaluator=evaluator,
                reconcile=Reconcile(exclude=("3.*",)),
            )
        return soup.details.losses, soup.scores["test"].value

    cook([0, 1, 2], None, tmp_path)
    order = [2, 1, 0] if base is None else [0, 1, 2]
    assert cook(order, base, tmp_path) == cook(order, base, None)


def test_the_saved_soup_is_verified_bit_for_bit(
    states: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from stockpot.recipes.record import verify
    from stockpot.recipes.soup import Soup

    paths = []
    for i, state in enumerate(states):
        paths.append(tmp_path / f"run-{i}.safetensors")
        save_file(state, paths[-1])
    soup = Learned(by="layer", n_epochs=4).cook(paths, make_task())
    soup.save(tmp_path / "soup.safetensors")
    assert verify(tmp_path / "soup.safetensors") == []
    loaded = Soup.load(tmp_path / "soup.safetensors")
    assert loaded.coefficients == soup.coefficients
    assert loaded.details.beta == soup.details.beta


def test_the_budget_decides_how_many_ingredients_are_held_and_changes_nothing(
    states: list[dict[str, torch.Tensor]],
) -> None:
    streamed = Learned(n_epochs=3, starts=("uniform",)).cook(states, make_task())
    held = Learned(n_epochs=3, starts=("uniform",), max_memory="1GB").cook(states, make_task())
    assert streamed.details.n_held == 0
    assert held.details.n_held == len(states)
    assert held.details.losses == streamed.details.losses
    with pytest.raises(RecipeError, match="at least"):
        Learned(max_memory="10KB").cook(states, make_task())


@pytest.mark.parametrize("optimiser", ["lbfgs", "adamw"])
def test_what_decides_has_no_part_in_the_fitting_nor_in_when_it_stops(
    states: list[dict[str, torch.Tensor]], optimiser: str
) -> None:
    x, y = digits()
    found = []
    for wrong in (0, 3):
        splits = {
            "val": Split(TensorDataset(x[600:1000], y[600:1000])),
            "decide": Split(TensorDataset(x[1000:1200], (y[1000:1200] + wrong) % 10)),
        }
        task = ClassificationTask(make_model, splits, batch_size=100)
        recipe = Learned(n_epochs=6, patience=1, decide_on="decide", optimiser=optimiser)
        found.append(recipe.cook(states, task, choose_on="val").details)
    assert found[0].learned_coefficients == found[1].learned_coefficients
    assert found[0].epochs == found[1].epochs
    assert found[0].parts["learned"]["deciding"] != found[1].parts["learned"]["deciding"]


def test_the_epoch_kept_is_that_with_the_lowest_loss_on_the_share_that_stops(
    states: list[dict[str, torch.Tensor]],
) -> None:
    recipe = Learned(n_epochs=8, starts=("uniform",), optimiser="adamw", lr=1.0)
    details = recipe.cook(states, make_task()).details
    epochs = details.epochs["uniform"]
    best = min(epochs, key=lambda epoch: epoch["stopping_loss"])
    assert details.beta == best["beta"]
    with pytest.raises(RecipeError, match="stopping is 1"):
        Learned(stopping=1.0)


def test_uniform_and_greedy_of_the_record_are_those_of_their_recipes(
    states: list[dict[str, torch.Tensor]],
) -> None:
    task = make_task()
    evaluator = TaskEvaluator(task)
    soup = Learned(n_epochs=1, starts=("uniform",)).cook(states, evaluator=evaluator)
    uniform = evaluator.predictions(Uniform().cook(states).mixture, "val")
    hits = uniform.per_example
    assert hits is not None
    n = soup.details.n_fitting * soup.details.parts["uniform"]["fitting"]
    n += soup.details.n_deciding * soup.details.parts["uniform"]["deciding"]
    assert n == pytest.approx(hits.sum())
    assert Greedy().cook(states, task).selected  # the recipe itself works on the whole split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": "sparsemax"}, "expected 'softmax', 'free' or 'hyperplane'"),
        ({"optimiser": "sgd"}, "expected 'lbfgs' or 'adamw'"),
        ({"batch_size": 10}, "leave batch_size out"),
        ({"deciding": 1.0}, "between 0 and 1"),
        ({"starts": ()}, "uniform, greedy, or both"),
        ({"n_epochs": 0}, "expected 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Learned(**options)


def test_one_ingredient_and_no_task_are_refused(states: list[dict[str, torch.Tensor]]) -> None:
    with pytest.raises(RecipeError, match="at least two"):
        Learned().cook(states[:1], make_task())
    with pytest.raises(RecipeError, match="needs a task"):
        Learned().cook(Ingredients(states))
