"""Files of `torch.save`."""

from __future__ import annotations

from stockpot._types import StrPath
from stockpot.checkpoint.base import Checkpoint
from stockpot.errors import CheckpointFormatError

__all__ = ["open_torch"]


def open_torch(
    path: StrPath, *, key: str | None = None, label: str | None = None, normalise: bool = True
) -> Checkpoint:
    """The checkpoint in a file of `torch.save`."""
    raise CheckpointFormatError(f"{path} is not a safetensors file")
