"""A small task that trains in milliseconds, written without the library's own task class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset, default_collate

from stockpot.evaluate.task import Metric, Split


@dataclass(frozen=True)
class Accuracy(Metric):
    name: str = "accuracy"
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0

    @staticmethod
    def per_example(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).double()

    def compute(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(self.per_example(outputs, targets).mean())


def images(n: int, seed: int) -> TensorDataset:
    """8×8 images whose class is the quadrant that is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    pixels = torch.rand(n, 1, 8, 8, generator=generator) * 0.7
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        pixels[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.3
    return TensorDataset(pixels, labels)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        return self.head(self.drop(functional.max_pool2d(x, 2).flatten(1)))


@dataclass(frozen=True)
class TinyTask:
    train_set: Dataset[Any] | None = field(default_factory=lambda: images(96, 0))
    batch_size: int = 16
    metric: Accuracy = field(default_factory=Accuracy)
    as_dicts: bool = False

    @property
    def splits(self) -> dict[str, Split]:
        return {
            "val": Split(images(64, 1), role="held-out"),
            "test": Split(images(64, 2), role="test"),
        }

    @property
    def calibration_set(self) -> Dataset[Any] | None:
        return self.train_set

    version = "1"

    def build(self) -> nn.Module:
        return Net()

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        order = list(range(len(dataset)) if indices is None else indices)  # type: ignore[arg-type]
        size = batch_size or self.batch_size
        for first in range(0, len(order), size):
            x, y = default_collate([dataset[i] for i in order[first : first + size]])
            yield {"x": x, "labels": y} if self.as_dicts else (x, y)

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["x"] if isinstance(batch, dict) else batch[0])

    def targets(self, batch: Any) -> torch.Tensor:
        return batch["labels"] if isinstance(batch, dict) else batch[1]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets)


def start_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().state_dict()
