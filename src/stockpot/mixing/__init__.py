"""Mixtures of checkpoints, and the engine that writes them. No torch is needed."""

from __future__ import annotations

from stockpot.mixing.buffers import BufferPolicy
from stockpot.mixing.coefficients import Coefficients
from stockpot.mixing.engine import MixPlan, Saved
from stockpot.mixing.incremental import IncrementalMixture, RunningSum
from stockpot.mixing.mixture import Mixture
from stockpot.mixing.rules import MaskLike
from stockpot.mixing.sparse import NonzeroMask, SharedSparsity, pruned_alike

__all__ = [
    "BufferPolicy",
    "Coefficients",
    "IncrementalMixture",
    "MaskLike",
    "MixPlan",
    "Mixture",
    "NonzeroMask",
    "RunningSum",
    "Saved",
    "SharedSparsity",
    "pruned_alike",
]
