"""The state of a run between two steps."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from stockpot.errors import TrainingError
from stockpot.evaluate.task import Task
from stockpot.train.config import TrainConfig
from stockpot.train.ema import ExponentialMean, RunningMean, snapshot
from stockpot.train.pruning import Position, Pruner

Scorer: TypeAlias = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch: mean training loss, the learning rate of its last step, held-out scores."""

    epoch: int
    loss: float
    lr: float
    scores: Mapping[str, float]


@dataclass
class Run:
    """The state of a run between two steps: all that resuming has to bring back."""

    task: Task
    config: TrainConfig
    seed: int
    accelerator: Any
    raw_model: nn.Module
    score: Scorer
    n_examples: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    model: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    generator: torch.Generator = field(default_factory=torch.Generator)
    done_steps: int = 0
    micro_batches: int = 1
    loss_sum: torch.Tensor | None = None
    pruner: Pruner | None = None
    start: nn.Module | None = None
    averages: dict[str, ExponentialMean | RunningMean] = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None
    best_epoch: int = -1
    seconds: float = 0.0

    @functools.cached_property
    def live(self) -> dict[str, torch.Tensor]:
        """The model's own tensors by name: collected once, they change in place at every step."""
        return snapshot(self.raw_model)

    @property
    def position(self) -> Position:
        """How far it has come."""
        return Position(self.done_steps, self.total_steps, self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self.done_steps // self.steps_per_epoch

    @property
    def probing(self) -> bool:
        """Whether the next step trains the head only."""
        return self.epoch < self.config.probe_epochs


def begin_phase(run: Run) -> None:
    """Choose what is trained and make a fresh optimiser for it."""
    config = run.config
    trained = config.head if run.probing else ("*",)
    named = dict(run.raw_model.named_parameters())
    _refuse_unmatched(config, named)
    for name, parameter in named.items():
        parameter.requires_grad_(matches(name, trained) and not matches(name, config.frozen))
    run.model = run.accelerator.prepare_model(run.raw_model)
    run.optimizer = make_optimizer(config, named)


def _refuse_unmatched(config: TrainConfig, named: Mapping[str, nn.Parameter]) -> None:
    unused = [
        f"{kind} pattern {pattern!r}"
        for kind in ("frozen", "head", "no_decay")
        for pattern in getattr(config, kind)
        if not any(matches(name, (pattern,)) for name in named)
    ]
    if unused:
        names = ", ".join(list(named)[:8])
        raise TrainingError(f"{'; '.join(unused)}: no parameter has such a name, but {names}, …")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `name` fits one of the shell patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def make_optimizer(config: TrainConfig, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the parameters that need gradients, decayed ones and others apart."""
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if not trained:
        raise TrainingError("every parameter is frozen: nothing would be trained")
    spared = [p for name, p in trained.items() if matches(name, config.no_decay)]
    decayed = [p for name, p in trained.items() if not matches(name, config.no_decay)]
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if params
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
