"""Sparse tensors to test with."""

from __future__ import annotations

import torch


def pruned(*shape: int, sparsity: float = 0.9, seed: int = 0) -> torch.Tensor:
    """Random values of which the smallest, a share of `sparsity`, are +0.0."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    n = round(values.numel() * sparsity)
    smallest = values.abs().flatten().argsort(stable=True)[:n]
    return values.flatten().index_fill(0, smallest, 0.0).reshape(shape)


def sparse_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A small model of 90 % sparse weights and what stays dense beside them."""
    return {
        "conv.weight": pruned(16, 8, 3, 3, seed=seed).to(dtype),
        "fc.weight": pruned(40, 250, seed=seed + 1).to(dtype),
        "fc.bias": torch.randn(40, generator=torch.Generator().manual_seed(seed)).to(dtype),
        "norm.weight": torch.ones(16).to(dtype),
        "scale.weight": torch.tensor(0.0).to(dtype),
        "norm.num_batches_tracked": torch.tensor(3),
    }
