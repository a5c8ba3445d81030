"""Formats, the lazy reader, and alignment. Opening reads headers only; nothing is executed."""

from __future__ import annotations

from stockpot.checkpoint.base import Checkpoint
from stockpot.checkpoint.ingredients import Ingredients, LeftOut
from stockpot.checkpoint.memory import from_state_dict
from stockpot.checkpoint.opening import expand_paths, open
from stockpot.checkpoint.spec import DType, TensorSpec, parse_dtype

__all__ = [
    "Checkpoint",
    "DType",
    "Ingredients",
    "LeftOut",
    "TensorSpec",
    "expand_paths",
    "from_state_dict",
    "open",
    "parse_dtype",
]
