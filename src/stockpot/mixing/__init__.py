"""Mixtures of checkpoints, and the engine that writes them. No torch is needed."""

from __future__ import annotations

from stockpot.mixing.buffers import BufferPolicy
from stockpot.mixing.coefficients import Coefficients
from stockpot.mixing.engine import MixPlan, Saved
from stockpot.mixing.incremental import IncrementalMixture, RunningSum
from stockpot.mixing.mixture import Mixture
from stockpot.mixing.rules import MaskLike

__all__ = [
    "BufferPolicy",
    "Coefficients",
    "IncrementalMixture",
    "MaskLike",
    "MixPlan",
    "Mixture",
    "RunningSum",
    "Saved",
]
