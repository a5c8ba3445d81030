"""Gradients of a loss with respect to mixing coefficients, in the memory of one model.

For θ_l = Σ_i c_{i,l} θ_{i,l} the chain rule gives ∂L/∂c_{i,l} = ⟨∂L/∂θ_l, θ_{i,l}⟩: an ordinary
backward pass at θ and one pass of inner products over the ingredients, which stay on disk. No graph
through k models is ever built, so memory does not grow with k (Model soups, Wortsman et al. 2022,
arXiv 2203.05482, App. I, held all of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stockpot.formats.base import Checkpoint
from stockpot.mixing.blocks import IngredientBlocks
from stockpot.mixing.device_blocks import DeviceBlocks
from stockpot.mixing.host_blocks import HostBlocks

if TYPE_CHECKING:
    import torch


def ingredient_blocks(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_memory: int | None = None,
) -> IngredientBlocks:
    """What goes over the values of k ingredients on `device`.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` (also for None) or `torch.float64`.
        device: where θ and its gradient are.
        max_memory: bytes that buffers and held ingredients may take together; None holds nothing.

    Raises:
        RecipeError: `max_memory` is less than the buffers need.
    """
    import torch

    device, dtype = torch.device(device), torch.float32 if dtype is None else dtype
    if device.type == "cpu":
        return HostBlocks(checkpoints, names, dtype=dtype, max_memory=max_memory)
    return DeviceBlocks(checkpoints, names, dtype=dtype, device=device, max_memory=max_memory)
