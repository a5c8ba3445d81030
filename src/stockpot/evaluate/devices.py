"""Data on a device, and a device that is full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def to_device(batch: Any, device: torch.device | str) -> Any:
    """`batch` with every tensor in it on `device`; lists, tuples and mappings are followed."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is for want of memory, on an accelerator or on the CPU.

    The allocator of the CPU raises a plain `RuntimeError`; its text is all that tells it apart.

    >>> is_out_of_memory(RuntimeError("[enforce fail] you tried to allocate memory: too much"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
