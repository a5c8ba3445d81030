from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import cifar_resnet, ingredients

DRAWN = {"optimizer": "sgd", "lr": 0.01, "epochs": 1, "batch_size": 32, "ema_decays": (0.9,)}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    return DRAWN


def start(data: Path, run: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return cifar_resnet.ResNet(8).state_dict()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.cifar_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def small() -> ingredients.Experiment:
    make_task = functools.partial(cifar_resnet.make_task, depth=8, n_train=40, n_held_out=40)
    return ingredients.Experiment("small", 3, make_task, start, draw)


def test_a_run_is_made_once_and_recorded(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    assert ingredients.missing_runs(small, tmp_path) == [0, 1, 2]
    out = ingredients.make_run(small, data, tmp_path, 1)
    assert ingredients.missing_runs(small, tmp_path) == [0, 2]
    made = out.stat().st_mtime_ns
    ingredients.make_run(small, data, tmp_path, 1)
    assert out.stat().st_mtime_ns == made
    ingredients.collect(tmp_path)
    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["run"] == record["seed"] == 1
    assert record["hyperparameters"]["lr"] == 0.01
    assert 0 <= record["scores"]["held-out"] <= 1
    assert record["base_fingerprint"] == stockpot.open(tmp_path / "base.safetensors").fingerprint
    average = tmp_path / "runs" / "averages" / record["averages"]["ema-0.9"]
    assert set(stockpot.open(average)) == set(stockpot.open(out))


def test_runs_share_their_start_and_differ_by_seed(
    small: ingredients.Experiment, data: Path, tmp_path: Path
) -> None:
    first, second = (ingredients.make_run(small, data, tmp_path, run) for run in (0, 2))
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["base.safetensors"]
    assert stockpot.open(first).fingerprint != stockpot.open(second).fingerprint
    assert stockpot.expand_paths([tmp_path / "runs"]) == [str(first), str(second)]


def test_the_control_shares_no_start(data: Path, tmp_path: Path) -> None:
    scratch = ingredients.EXPERIMENTS["scratch"]
    assert not scratch.shares_start
    starts = [scratch.start(data, run)["conv1.weight"] for run in (0, 1, 0)]
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[1])
    assert ingredients.start_file(tmp_path, scratch, 1).name == "start-01"


@pytest.mark.parametrize("name", sorted(ingredients.EXPERIMENTS))
def test_hyper_parameters_follow_from_the_number_of_the_run(name: str) -> None:
    experiment = ingredients.EXPERIMENTS[name]
    configs = [ingredients.config_of(experiment, run) for run in range(30)]
    assert configs == [ingredients.config_of(experiment, run) for run in range(30)]
    assert len({c.lr for c in configs}) == (1 if name == "scratch" else 30)
    more = dataclasses.replace(experiment, n_runs=99)
    assert ingredients.config_of(more, 3) == configs[3]


def test_text_runs_follow_the_glue_law_cut_to_their_most_steps() -> None:
    rng = np.random.default_rng(0)
    drawn = [ingredients.draw_text(rng, most_examples=4_800) for _ in range(2000)]
    exponents = np.log10([d["lr"] for d in drawn])
    assert -6 <= exponents.min() < -5.99
    assert -3.01 < exponents.max() <= -3
    assert abs(np.mean(exponents) + 4.5) < 0.05
    assert {d["batch_size"] for d in drawn} == {8, 16, 32, 64}
    assert {d["epochs"] for d in drawn} == {2, 3, 5}
    assert {(d["batch_size"], d["max_steps"]) for d in drawn} == {
        (8, 250), (16, 250), (32, 150), (64, 75),
    }  # fmt: skip


def test_text_experiments_start_from_label_sentences(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tasks.transformers import tiny

    folder = tiny.bert_folder(tmp_path / "bert", "BertModel")
    monkeypatch.setattr(ingredients.sst2_minilm, "minilm_folder", lambda: folder)
    first, again = (ingredients.EXPERIMENTS["rte"].start(data, run) for run in (0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["head.weight"].norm(dim=1).tolist() == pytest.approx([20, 20])
