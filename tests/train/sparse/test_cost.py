"""Theoretical cost of sparse models."""

from __future__ import annotations

import torch
from tests.formats.pruning import pruned
from torch import nn

from stockpot.train.sparse.cost import sparse_cost


def test_each_layer_is_scaled_by_its_own_density() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 10))
    model[0].weight.data = pruned(4, 2, 3, 3, sparsity=0.5)
    model[2].weight.data = pruned(10, 64, sparsity=0.9)
    cost = sparse_cost(model, torch.zeros(1, 2, 6, 6))
    conv, linear = 2 * 4 * 16 * 18, 2 * 10 * 64
    assert cost.dense_flops == conv + linear
    assert cost.flops == 0.5 * conv + 0.1 * linear
    assert cost.n_parameters == 72 + 640 + 10
    assert cost.n_nonzero == 36 + 64 + 10
    assert cost.speed_up == cost.dense_flops / cost.flops


def test_products_without_weights_count_in_full_and_the_mode_comes_back() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8, bias=False)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.drop(self.fc(x))
            return x @ x.T

    model = Square().train()
    nn.init.zeros_(model.fc.weight)
    cost = sparse_cost(model, torch.ones(4, 8))
    assert model.training
    assert cost.dense_flops == 2 * 4 * 8 * 8 + 2 * 4 * 4 * 8
    assert cost.flops == 2 * 4 * 4 * 8
