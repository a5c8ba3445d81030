"""The small convolutional network that reads 8×8 digits."""

from __future__ import annotations

import torch
from torch import nn


def make_network(width: int = 32) -> nn.Module:
    """A fresh network: (N, 1, 8, 8) float32 images to (N, 10) logits, about 0.16 M weights.

    Three 3×3 convolutions, two of them with stride 2, and two linear layers. GroupNorm, so that
    a mixture has no running statistics to recalibrate. The weights are drawn from torch's global
    generator, as modules do: `initial_weights` fixes them.

    >>> sum(p.numel() for p in make_network().parameters())
    159850
    """
    return nn.Sequential(
        *_block(1, width),
        *_block(width, 2 * width, stride=2),
        *_block(2 * width, 4 * width, stride=2),
        nn.Flatten(),
        nn.Linear(16 * width, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _block(n_in: int, n_out: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, n_out),
        nn.ReLU(),
    )


def initial_weights(seed: int) -> dict[str, torch.Tensor]:
    """Weights of a fresh network fixed by `seed`; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network().state_dict()
