"""Weighted sums of blocks of weights, rounded once; running averages along a run.

Everything here works on NumPy arrays and needs no torch. BF16, which NumPy does not have, is seen
as the uint16 of its bits. Types are named as in the safetensors format: F64, F32, F16, BF16.
"""

from __future__ import annotations

from stockpot.arithmetic.rounding import finite, narrow, widen
from stockpot.arithmetic.running import ema_step, swa_step
from stockpot.arithmetic.sums import Unrepresentable, mix, mix_elementwise

__all__ = [
    "Unrepresentable",
    "ema_step",
    "finite",
    "mix",
    "mix_elementwise",
    "narrow",
    "swa_step",
    "widen",
]
