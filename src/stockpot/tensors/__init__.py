"""Weighted sums of blocks of weights, rounded once.

Everything here works on NumPy arrays and needs no torch. BF16, which NumPy does not have, is seen
as the uint16 of its bits. Types are named as in the safetensors format: F64, F32, F16, BF16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.tensors.rounding import finite as finite
    from stockpot.tensors.rounding import narrow as narrow
    from stockpot.tensors.rounding import widen as widen
    from stockpot.tensors.sums import Unrepresentable as Unrepresentable
    from stockpot.tensors.sums import mix as mix
    from stockpot.tensors.sums import mix_elementwise as mix_elementwise

__getattr__, __dir__ = lazy_exports(__name__, __file__)
