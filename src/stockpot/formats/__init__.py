"""Formats of checkpoints and the lazy reader: headers only are read, nothing is executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint as Checkpoint
    from stockpot.formats.format import Format as Format
    from stockpot.formats.memory import from_state_dict as from_state_dict
    from stockpot.formats.opening import open as open
    from stockpot.formats.runs import expand_paths as expand_paths
    from stockpot.formats.table import FORMATS as FORMATS
    from stockpot.formats.table import register as register
    from stockpot.tensors.spec import DType as DType
    from stockpot.tensors.spec import TensorSpec as TensorSpec

__getattr__, __dir__ = lazy_exports(__name__, __file__)
