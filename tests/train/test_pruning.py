"""Zeros hold through training, and runs that prune themselves reach their target."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.train.tasks import Net, TinyTask, images, start_weights

from stockpot.errors import MaskMismatchError, TrainingError
from stockpot.mixing.mask import Mask
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune
from stockpot.train.pruning import DynamicPruning, GradualPruning, make_pruner
from stockpot.train.sparse.selectors import Magnitude, n_zeros

CONFIG = TrainConfig(lr=1e-2, epochs=4, weight_decay=0.1)
NAMES = ("conv.weight", "head.weight")
N_WEIGHTS = 36 + 256


class Killed(Exception):
    pass


def kill_at(step: int):
    def progress(done: int, total: int | None, what: str) -> None:
        if done == step:
            raise Killed

    return progress


def train(out: Path, config: TrainConfig = CONFIG, **options):
    return fine_tune(TinyTask(), start_weights(), config, out=out, device="cpu", **options)


def mask_of(weights: dict[str, torch.Tensor], sparsity: float = 0.8) -> Mask:
    return Magnitude().select({name: weights[name] for name in NAMES}, sparsity)


def zeros_of(weights: dict[str, torch.Tensor]) -> int:
    return sum(int((weights[name] == 0).sum()) for name in NAMES)


def assert_positive_zeros(mask: Mask, weights: dict[str, torch.Tensor]) -> None:
    for name in mask:
        pruned = weights[name][torch.from_numpy(~mask.kept(name))]
        assert not pruned.any()
        assert not pruned.signbit().any(), "−0.0"


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
        {"optimizer": "adamw", "precision": "bf16"},
        {"optimizer": "sgd", "lr": 0.05, "clip_norm": None, "mixup": 0.4},
    ],
    ids=["adamw", "sgd", "bf16", "mixup"],
)
def test_zeros_hold_through_a_run(tmp_path: Path, options) -> None:
    mask = mask_of(start_weights())
    config = replace(CONFIG, ema_decays=(0.9,), swa_start_epoch=2, **options)
    result = train(tmp_path / "run.safetensors", config, pruning=mask)
    for path in (result.path, *result.averages.values()):
        assert_positive_zeros(mask, load_file(path))
    found = load_file(result.path)
    assert Mask.of_nonzero({n: found[n] for n in NAMES}) == mask
    assert not torch.equal(found["head.weight"], start_weights()["head.weight"])


class OneLayer(TinyTask):
    def build(self) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1}])
def test_zeros_hold_through_ten_thousand_steps(tmp_path: Path, options) -> None:
    """With momentum, decay and mixed precision, on a model small enough for a test."""
    config = TrainConfig(
        **{"lr": 1e-2, "weight_decay": 0.1, "precision": "bf16", **options},
        epochs=5, score_every=5, clip_norm=None,
    )  # fmt: skip
    task = OneLayer(train_set=images(4000, 0), batch_size=2)
    start = task.build().state_dict()
    mask = Magnitude().select({"1.weight": start["1.weight"]}, 0.9)
    # One batch, again and again: collating others would take most of the time.
    (batch,) = task.batches(task.train_set, range(2))
    object.__setattr__(task, "batches", lambda *_, **__: [batch] * 2000)
    result = fine_tune(
        task, start, config, out=tmp_path / "run.safetensors", device="cpu", pruning=mask,
        score=lambda model: {"val": 1.0},
    )  # fmt: skip
    assert result.n_steps == 10_000
    found = load_file(result.path)
    assert_positive_zeros(mask, found)
    assert Mask.of_nonzero({"1.weight": found["1.weight"]}) == mask


def test_gradients_of_pruned_weights_do_not_count_when_gradients_are_clipped() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    mask = Mask({"weight": np.array([[True, False]])})
    pruner = make_pruner(mask, model)
    assert pruner is not None
    pruner.begin()
    model.weight.grad = torch.tensor([[3.0, float(4)]])
    pruner.mask_gradients()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) == 3.0


def test_a_float16_step_that_overflows_leaves_zeros_alone() -> None:
    """The scaler skips the step, and what inf · 0 made of the gradient goes with it."""
    model = torch.nn.Linear(2, 1, bias=False)
    pruner = make_pruner(Mask({"weight": np.array([[True, False]])}), model)
    assert pruner is not None
    pruner.begin()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(model(torch.full((1, 2), float("inf"))).sum()).backward()
    scaler.unscale_(optimizer)
    pruner.mask_gradients()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)


def test_a_mask_that_does_not_fit_the_model_is_refused_naming_every_tensor(tmp_path: Path) -> None:
    mask = Mask({"conv.weight": np.ones((2, 2), np.bool_), "other": np.ones(3, np.bool_)})
    with pytest.raises(MaskMismatchError) as caught:
        train(tmp_path / "run.safetensors", pruning=mask)
    assert {problem.tensor for problem in caught.value.problems} == {"conv.weight", "other"}


def test_weights_that_come_back_to_life_end_the_run(tmp_path: Path) -> None:
    class Meddling(TinyTask):
        def predict(self, model, batch):
            with torch.no_grad():
                model.head.weight.add_(0.1)
            return super().predict(model, batch)

    mask = mask_of(start_weights())
    with pytest.raises(TrainingError, match=r"head\.weight are no longer zero"):
        fine_tune(
            Meddling(), start_weights(), CONFIG, out=tmp_path / "run.safetensors", pruning=mask,
            device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize(
    "plan",
    [
        GradualPruning(sparsity=0.9),
        GradualPruning(sparsity=0.9, until=1.0, every_epochs=3),
        DynamicPruning(sparsity=0.9, every_steps=5),
        GradualPruning(sparsity=0.6, exclude=("head.*",)),
    ],
)
def test_a_run_that_prunes_itself_ends_at_the_very_target(tmp_path: Path, plan) -> None:
    result = train(tmp_path / "run.safetensors", replace(CONFIG, epochs=6), pruning=plan)
    found = load_file(result.path)
    names = ("conv.weight",) if plan.exclude else NAMES
    weights = sum(found[name].numel() for name in names)
    zeros = sum(int((found[name] == 0).sum()) for name in names)
    assert zeros == n_zeros(plan.sparsity, weights)
    last = result.epochs[-1].scores["val"]
    model = Net()
    model.load_state_dict(found)
    model.eval()
    data = TinyTask().splits["val"].dataset
    x, y = (torch.stack([item[0] for item in data]), torch.stack([item[1] for item in data]))
    assert float((model(x).argmax(1) == y).double().mean()) == last, "what is scored is saved"


def test_gradual_pruning_is_nested_and_rises_with_the_ramp(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    states: list[Mask] = []

    def score(model: torch.nn.Module) -> dict[str, float]:
        weights = dict(model.named_parameters())
        states.append(Mask.of_nonzero({name: weights[name] for name in NAMES}))
        seen.append((len(seen), states[-1].n_zeros))
        return {"val": 0.0}

    config = replace(CONFIG, epochs=8)
    plan = GradualPruning(sparsity=0.9, until=0.5)
    train(tmp_path / "run.safetensors", config, pruning=plan, score=score)
    zeros = [n for _, n in seen]
    assert zeros == sorted(zeros)
    assert zeros[0] == n_zeros(0.9 * (1 - (1 - 1 / 5) ** 3), N_WEIGHTS)
    assert zeros[4:] == [n_zeros(0.9, N_WEIGHTS)] * 4
    assert all(later <= earlier for earlier, later in pairwise(states))


def test_dynamic_pruning_lets_weights_grow_back(tmp_path: Path) -> None:
    states: list[Mask] = []

    def score(model: torch.nn.Module) -> dict[str, float]:
        weights = dict(model.named_parameters())
        states.append(Mask.of_nonzero({name: weights[name] for name in NAMES}))
        return {"val": 0.0}

    config = replace(CONFIG, epochs=8, lr=0.05)
    plan = DynamicPruning(sparsity=0.5, until=0.2, every_steps=2)
    train(tmp_path / "run.safetensors", config, pruning=plan, score=score)
    assert states[-1].n_zeros == n_zeros(0.5, N_WEIGHTS)
    assert not states[-1] <= states[2], "something that was pruned is kept in the end"


@pytest.mark.parametrize(
    "pruning",
    ["mask", GradualPruning(sparsity=0.8), DynamicPruning(sparsity=0.8, every_steps=3)],
    ids=["mask", "gmp", "dpf"],
)
@pytest.mark.parametrize("kills", [(4,), (1, 6, 7, 13)])
def test_a_killed_sparse_run_ends_in_the_same_bytes(tmp_path: Path, pruning, kills) -> None:
    plan = mask_of(start_weights()) if pruning == "mask" else pruning
    whole = train(tmp_path / "whole.safetensors", pruning=plan, seed=3)
    out = tmp_path / "killed.safetensors"
    for step in kills:
        with pytest.raises(Killed):
            train(out, pruning=plan, seed=3, progress=kill_at(step), save_every_steps=2)
    result = train(out, pruning=plan, seed=3)
    assert result.resumed_at_step is not None
    assert out.read_bytes() == Path(whole.path).read_bytes()


def test_a_state_of_another_mask_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(out, pruning=mask_of(start_weights()), progress=kill_at(8))
    with pytest.raises(TrainingError, match="pruning was"):
        train(out, pruning=mask_of(start_weights(), 0.5))


def test_averages_along_a_run_whose_mask_changes_are_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, ema_decays=(0.9,), keep="best")
    with pytest.raises(TrainingError, match="ema_decays, keep"):
        train(tmp_path / "run.safetensors", config, pruning=GradualPruning(sparsity=0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradualPruning(sparsity=1.0, until=0, every_epochs=0),
        lambda: DynamicPruning(sparsity=1.0, until=0, every_steps=0),
    ],
)
def test_plans_that_make_no_sense_list_every_reason(make) -> None:
    with pytest.raises(TrainingError, match=r"sparsity is 1\.0.*until is 0.*expected at least 1"):
        make()
