"""Optimisers by name, and parameters by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stockpot.errors import TrainingError
from stockpot.train.config import TrainConfig


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
