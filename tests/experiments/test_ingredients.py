from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import cifar_resnet, ingredients
from stockpot.train.config import TrainConfig
from stockpot.train.sweep.named import resolve_space
from stockpot.train.sweep.records import read_runs

SPACE = {
    "optimizer": "sgd",
    "lr": {"log_uniform": [0.01, 0.02]},
    "epochs": 1,
    "batch_size": 32,
    "ema_decays": [0.9],
}


def start(data: Path) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return cifar_resnet.ResNet(8).state_dict()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.cifar_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def small() -> ingredients.Experiment:
    make_task = functools.partial(cifar_resnet.make_task, depth=8, n_train=40, n_held_out=40)
    return ingredients.Experiment("small", 2, make_task, start, SPACE)


def test_a_sweep_is_made_once_and_recorded(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    sweep = ingredients.Sweep(small, 3, data, tmp_path)
    assert ingredients.make_sweep(sweep) == 2
    runs = read_runs(sweep.runs)
    made = [(sweep.runs / run.path).stat().st_mtime_ns for run in runs]
    assert ingredients.make_sweep(sweep) == 2
    assert [(sweep.runs / run.path).stat().st_mtime_ns for run in runs] == made
    for run in runs:
        assert run.seed == 3000 + run.index
        assert run.base["fingerprint"] == stockpot.open(sweep.base).fingerprint
        average = stockpot.open(sweep.runs / run.averages["ema-0.9"]["path"])
        assert set(average) == set(stockpot.open(sweep.runs / run.path))
    assert runs[0].fingerprint != runs[1].fingerprint
    assert set(runs[0].scores or {}) > {"held-out", "test"}


def test_what_reports_can_wait(small: ingredients.Experiment, data: Path, tmp_path: Path) -> None:
    sweep = ingredients.Sweep(small, 3, data, tmp_path)
    assert ingredients.make_sweep(sweep, held_out_only=True) == 2
    assert [set(run.scores or {}) for run in read_runs(sweep.runs)] == [{"held-out"}] * 2


def test_scores_of_a_sweep_are_in_its_journal(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    sweep = ingredients.Sweep(small, 0, data, tmp_path)
    ingredients.make_sweep(sweep)
    # A sweep records each run with the statistics that it was saved with.
    evaluator = stockpot.TaskEvaluator(
        sweep.task(), cache=sweep.cache, device="cpu", batchnorm="averaged"
    )
    for run in read_runs(sweep.runs):
        scores = evaluator.scores(stockpot.open(sweep.runs / run.path))
        assert scores["test"].value == run.scores["test"]["value"]
    assert evaluator.counters.examples == 0


def test_the_control_shares_no_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(cifar_resnet.make_task, n_train=40, n_held_out=40)
    control = dataclasses.replace(
        ingredients.quickly(ingredients.EXPERIMENTS["scratch"]), make_task=small
    )
    assert control.start is None
    sweep = ingredients.Sweep(control, 2, data, tmp_path, quick=True)
    ingredients.make_sweep(sweep)
    runs = [stockpot.open(sweep.runs / run.path) for run in read_runs(sweep.runs)]
    task = sweep.task()
    starts = [ingredients.own_initialisation(task, 2000 + i)["conv1.weight"] for i in (0, 1)]
    assert not sweep.base.exists()
    assert not torch.equal(*starts)
    for trained, begun in zip(runs, starts, strict=True):
        moved = (trained.read("conv1.weight") - begun).norm()
        assert 0 < moved < 0.2 * begun.norm()


def test_a_failed_run_is_named_with_its_reason(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    broken = dataclasses.replace(small, space={"frozen": ["no-such-*"]})
    with pytest.raises(RuntimeError, match=r"2 runs of .* failed(.|\n)*no-such-\*"):
        ingredients.make_sweep(ingredients.Sweep(broken, 0, data, tmp_path))


def test_every_experiment_can_be_tried_quickly(data: Path, tmp_path: Path) -> None:
    wanted = ingredients.sweeps(["scratch", "rte"], [0, 4], data, tmp_path, quick=True)
    assert list(wanted) == ["sweep-0/rte", "sweep-4/rte", "sweep-0/scratch", "sweep-4/scratch"]
    for sweep in wanted.values():
        drawn = [resolve_space(sweep.experiment.space).draw(i, seed=sweep.seed) for i in range(2)]
        assert all(d["max_steps"] == ingredients.QUICK_STEPS and d["epochs"] == 1 for d in drawn)
        TrainConfig.from_mapping(drawn[0])
    task = dataclasses.replace(
        ingredients.EXPERIMENTS["resnet"],
        make_task=functools.partial(cifar_resnet.make_task, n_train=60, n_held_out=50),
    ).task(data, quick=True)
    assert {name: len(split.dataset) for name, split in task.splits.items()} == {
        "held-out": 40, "test": 40, "lossless": 20, "natural": 12, "tiny-imagenet": 12,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(ingredients.EXPERIMENTS))
def test_every_draw_is_a_training_configuration(name: str) -> None:
    space = resolve_space(ingredients.EXPERIMENTS[name].space)
    drawn = [space.draw(run, seed=0) for run in range(30)]
    configs = [TrainConfig.from_mapping(values) for values in drawn]
    assert len({c.lr for c in configs}) == (1 if "scratch" in name else 30)
    assert resolve_space(json.loads(json.dumps(space.as_data()))).draw(3, seed=0) == drawn[3]


def test_text_runs_follow_the_glue_law_cut_to_their_most_steps() -> None:
    space = resolve_space(ingredients.text_space(4_800))
    drawn = [space.draw(i, seed=0) for i in range(2000)]
    exponents = np.log10([d["lr"] for d in drawn])
    assert -6 <= exponents.min() < -5.99
    assert -3.01 < exponents.max() <= -3
    assert abs(np.mean(exponents) + 4.5) < 0.05
    assert {d["epochs"] for d in drawn} == {2, 3, 5}
    assert {(d["batch_size"], d["max_steps"]) for d in drawn} == {
        (8, 250), (16, 250), (32, 150), (64, 75),
    }  # fmt: skip


def test_text_experiments_start_from_label_sentences(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tasks.transformers import tiny

    folder = tiny.bert_folder(tmp_path / "bert", "BertModel")
    monkeypatch.setenv("STOCKPOT_MINILM", str(folder))
    start = ingredients.EXPERIMENTS["rte"].start
    assert start is not None
    first, again = (start(data) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["head.weight"].norm(dim=1).tolist() == pytest.approx([20, 20])


def test_a_part_of_a_sweep_is_its_first_runs(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    sweep = ingredients.Sweep(small, 3, data, tmp_path)
    assert ingredients.make_sweep(ingredients.first_runs(sweep, 1)) == 1
    first = [run.fingerprint for run in read_runs(sweep.runs)]
    assert ingredients.make_sweep(ingredients.first_runs(sweep, 9)) == 2
    assert [run.fingerprint for run in read_runs(sweep.runs)][:1] == first
