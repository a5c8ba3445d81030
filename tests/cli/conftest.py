from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from stockpot.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process, as the shell would."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


TASK = """
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from stockpot import ClassificationTask, Split

x, y = load_digits(return_X_y=True)
x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)


def build():
    return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))


def part(first, last, shift=0):
    return TensorDataset(x[first:last].roll(shift, -1), y[first:last])


task = ClassificationTask(
    build=build,
    splits={
        "val": Split(part(500, 900), role="held-out"),
        "test": Split(part(900, 1300), role="test"),
        "shifted": Split(part(900, 1300, 1), role="shift"),
    },
    batch_size=200,
    train_set=part(0, 500),
)
"""


@dataclass(frozen=True)
class Kitchen:
    """A task as --task takes it, a base, and four fine-tunes of it."""

    task: str
    base: str
    runs: list[str]


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    import torch
    from safetensors.torch import save_file

    from stockpot.tasks import resolve

    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "task.py").write_text(TASK)
    task = resolve(f"{folder / 'task.py'}:task")
    torch.manual_seed(0)
    model = task.build()
    inputs, targets = task.train_set.tensors
    start = {name: value.clone() for name, value in model.state_dict().items()}
    paths = []
    for i, (rate, steps) in enumerate([(1e-2, 60), (3e-2, 40), (3e-1, 20), (5e-3, 90)]):
        model.load_state_dict(start)
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimiser.step()
        paths.append(str(folder / "runs" / f"run-{i:02}.safetensors"))
        (folder / "runs").mkdir(exist_ok=True)
        save_file(model.state_dict(), paths[-1])
    save_file(start, folder / "base.safetensors")
    return Kitchen(f"{folder / 'task.py'}:task", str(folder / "base.safetensors"), paths)
