"""Zoo-Tuning on digits: three networks of different pretrainings, and a task of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import stockpot
from stockpot.errors import OutputExistsError, RecipeError
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import verify
from stockpot.tasks import ClassificationTask
from stockpot.train.zoo.layers import unfolded
from stockpot.train.zoo.options import ZooTuning

QUICK = ZooTuning(epochs=3, lr=0.01, step_size=50)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    return ClassificationTask(
        build=build,
        splits={
            "val": Split(TensorDataset(x[600:1200], y[600:1200]), role="held-out"),
            "test": Split(TensorDataset(x[1200:], y[1200:]), role="test"),
        },
        train_set=TensorDataset(x[:600], y[:600]),
        version="1",
    )


@pytest.fixture(scope="module")
def models(task: ClassificationTask, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Each from a start of its own, on pixels in an order of its own; heads of 5 classes."""
    folder = tmp_path_factory.mktemp("zoo")
    x, y = task.train_set.tensors
    paths = []
    for i in range(3):
        torch.manual_seed(i)
        model = nn.Sequential(*build()[:3], nn.Linear(32, 5))
        order = torch.randperm(64)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(x[:, order]), y % 5)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        paths.append(str(folder / f"{i}.safetensors"))
        save_file(model.state_dict(), paths[-1])
    return paths


def test_what_comes_out_is_one_plain_model_that_predicts_as_the_unfolded(
    task: ClassificationTask, models: list[str], tmp_path: Path
) -> None:
    evaluator = TaskEvaluator(task, device="cpu", batchnorm="averaged")
    found = QUICK.run(models, task, folder=tmp_path / "work", evaluator=evaluator, device="cpu")
    assert found.soup.scores["test"].value > 0.8
    assert found.fresh == ("3.bias", "3.weight")
    assert set(found.gates) == {"0"}
    assert len(found.gates["0"]) == 3
    assert [one.epoch for one in found.epochs] == [0, 1, 2]
    out = tmp_path / "adapted.safetensors"
    found.soup.save(out)
    assert verify(out) == []
    plain = build()
    plain.load_state_dict(load_file(out))
    states = [load_file(path) for path in models]
    network, _ = unfolded(build(), states)
    network.load_state_dict(load_file(found.unfolded))
    x = task.splits["test"].dataset.tensors[0]
    with torch.no_grad():
        assert torch.allclose(plain.eval()(x), network.eval()(x), atol=1e-5)
    loaded = stockpot.Soup.load(out)
    assert loaded.recipe == "zoo"
    assert loaded.to_json()["models"] == models
    assert loaded.to_json() == found.to_json()


def test_a_second_call_trains_nothing_and_other_settings_are_refused(
    task: ClassificationTask, models: list[str], tmp_path: Path
) -> None:
    work, steps = tmp_path / "work", []
    first = QUICK.run(
        models, task, folder=work, device="cpu", progress=lambda *at: steps.append(at)
    )
    assert len(steps) == 3 * 12
    weights = (work / "folded.safetensors").read_bytes()
    again = QUICK.run(
        models, task, folder=work, device="cpu", progress=lambda *at: steps.append(at)
    )
    assert len(steps) == 3 * 12
    assert again.to_json() == first.to_json()
    assert again.epochs == first.epochs
    assert (work / "folded.safetensors").read_bytes() == weights
    other = ZooTuning(epochs=1, step_size=50)
    with pytest.raises(OutputExistsError, match="a Zoo-Tuning with other settings"):
        other.run(models, task, folder=work, device="cpu")
    other.run(models, task, folder=work, device="cpu", force=True)
    assert (work / "folded.safetensors").read_bytes() != weights
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="left alone"):
        other.run(models, task, folder=tmp_path / "thesis", device="cpu", force=True)


def test_a_run_that_was_stopped_ends_at_the_same_bytes(
    task: ClassificationTask, models: list[str], tmp_path: Path
) -> None:
    QUICK.run(models, task, folder=tmp_path / "whole", device="cpu")

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        QUICK.run(models, task, folder=tmp_path / "parts", device="cpu", progress=stop)
    assert not (tmp_path / "parts" / "folded.safetensors").exists()
    QUICK.run(models, task, folder=tmp_path / "parts", device="cpu")
    for name in ("unfolded.safetensors", "folded.safetensors"):
        one, other = (load_file(tmp_path / place / name) for place in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_decay_spares_gates_and_transforms(
    task: ClassificationTask, models: list[str], tmp_path: Path
) -> None:
    strong = ZooTuning(epochs=2, lr=1e-9, step_size=50, optimizer="sgd", weight_decay=1e6)
    found = strong.run(models, task, folder=tmp_path / "work", device="cpu")
    weights = load_file(found.unfolded)
    assert torch.allclose(weights["0.transforms"], torch.eye(32).repeat(3, 1, 1), atol=1e-4)
    states = [load_file(path)["0.weight"] for path in models]
    assert weights["0.weights"].norm() < 0.99 * torch.stack(states).norm()


def test_a_single_model_is_refused(task: ClassificationTask, models: list[str]) -> None:
    with pytest.raises(RecipeError, match="two models or more"):
        QUICK.run(models[:1], task, folder="nowhere")
