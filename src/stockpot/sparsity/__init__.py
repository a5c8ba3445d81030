"""Masks of kept weights, and how they are chosen."""

from __future__ import annotations

from stockpot.sparsity.mask import Mask
from stockpot.sparsity.rates import gradual_sparsity, n_zeros, phase_sparsities
from stockpot.sparsity.selectors import (
    SELECTORS,
    Magnitude,
    Random,
    Selector,
    SemiStructured,
    Structured,
    UniformMagnitude,
    parse_selector,
)

__all__ = [
    "SELECTORS",
    "Magnitude",
    "Mask",
    "Random",
    "Selector",
    "SemiStructured",
    "Structured",
    "UniformMagnitude",
    "gradual_sparsity",
    "n_zeros",
    "parse_selector",
    "phase_sparsities",
]
