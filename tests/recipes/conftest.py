"""Eight small real fine-tunes of one base on scikit-learn's digits, trained once per session."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from stockpot.evaluate.task import Split
from stockpot.tasks.classification import ClassificationTask


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.LayerNorm(24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    )


def build_bn():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    )


@dataclass(frozen=True)
class Lab:
    """A task, the paths of its fine-tunes, and the base."""

    task: ClassificationTask
    paths: list[str]
    base: str


def fit(model, data, *, lr, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    x, y = data
    model.train()
    for _ in range(steps):
        part = torch.randint(0, len(x), (32,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(x[part]), y[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def make_lab(folder, make) -> Lab:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = torch.from_numpy(x[order]).float() / 16
    y = torch.from_numpy(y[order])
    train, val, test = (slice(0, 600), slice(600, 1200), slice(1200, 1797))
    noisy = x[test] + 0.4 * torch.randn(x[test].shape, generator=torch.Generator().manual_seed(0))
    splits = {
        "held-out": Split(TensorDataset(x[val], y[val]), role="held-out"),
        "test": Split(TensorDataset(x[test], y[test]), role="test"),
        "noise": Split(TensorDataset(noisy, y[test]), role="shift", images="test"),
        "shifted": Split(TensorDataset(x[test].roll(1, -1), y[test]), role="shift", images="test"),
    }
    task = ClassificationTask(
        build=make, splits=splits, batch_size=128, train_set=TensorDataset(x[train], y[train])
    )
    torch.manual_seed(0)
    start = make()
    weights = fit(start, (x[train][:150], y[train][:150]), lr=1e-3, steps=40, seed=99)
    base = str(folder / "base.safetensors")
    save_file(weights, base)
    paths = []
    rates = [1e-2, 3e-3, 2e-2, 5e-3, 8e-3, 1e-1, 4e-3, 1.5e-2]
    for i, lr in enumerate(rates):
        model = make()
        model.load_state_dict(weights)
        paths.append(str(folder / f"run-{i:02d}.safetensors"))
        data = (x[train], y[train])
        save_file(fit(model, data, lr=lr, steps=60 + 10 * i, seed=i), paths[-1])
    return Lab(task, paths, base)


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("digits"), build)


@pytest.fixture(scope="session")
def bn_lab(tmp_path_factory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("digits-bn"), build_bn)
