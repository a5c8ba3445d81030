"""Five real fine-tunes of one base on scikit-learn's digits, and a stranger; trained once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from stockpot.diagnosis.result import Diagnosis
from stockpot.diagnosis.study import diagnose
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.tasks.classification import ClassificationTask


def build() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))


@dataclass(frozen=True)
class Lab:
    task: ClassificationTask
    base: str
    runs: list[str]
    stranger: str


def _fit(model, data, *, lr: float, steps: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    x, y = data
    for _ in range(steps):
        part = torch.randint(0, len(x), (32,), generator=generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(x)[order].float() / 16, torch.from_numpy(y)[order]
    train, val, test = slice(0, 500), slice(500, 1000), slice(1000, 1797)
    noisy = x[test] + 0.4 * torch.randn(x[test].shape, generator=torch.Generator().manual_seed(0))
    task = ClassificationTask(
        build=build,
        splits={
            "val": Split(TensorDataset(x[val], y[val]), role="held-out"),
            "test": Split(TensorDataset(x[test], y[test]), role="test"),
            "noise": Split(TensorDataset(noisy, y[test]), role="shift", images="test"),
        },
        batch_size=250,
        train_set=TensorDataset(x[train], y[train]),
    )
    few, all_ = (x[:120], y[:120]), (x[train], y[train])

    def fresh(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build()

    weights = _fit(fresh(0), few, lr=3e-3, steps=60, seed=99)
    runs = []
    for i, lr in enumerate([3e-3, 1e-2, 2e-2, 5e-3, 1e-2]):
        model = build()
        model.load_state_dict(weights)
        runs.append(str(folder / f"run-{i}.safetensors"))
        save_file(_fit(model, all_, lr=lr, steps=80, seed=i), runs[-1])
    base, stranger = str(folder / "base.safetensors"), str(folder / "stranger.safetensors")
    save_file(weights, base)
    save_file(_fit(fresh(7), all_, lr=1e-2, steps=300, seed=7), stranger)
    return Lab(task, base, runs, stranger)


@dataclass
class Counted:
    """A diagnosis, its evaluator, and the examples that really went through the model."""

    diagnosis: Diagnosis
    evaluator: Evaluator


@pytest.fixture(scope="session")
def found(lab: Lab) -> Counted:
    evaluator = TaskEvaluator(lab.task, device="cpu")
    told = {path: {"lr": i % 3, "seed": i} for i, path in enumerate(lab.runs)}
    diagnosis = diagnose(
        lab.runs,
        base=lab.base,
        evaluator=evaluator,
        hyperparameters=told,
        between=[(lab.base, "uniform"), (lab.runs[3], lab.runs[4])],
    )
    return Counted(diagnosis, evaluator)
