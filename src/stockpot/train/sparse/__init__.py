"""Masks of kept weights, and how they are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.mixing.mask import Mask as Mask
    from stockpot.train.sparse.selectors import SELECTORS as SELECTORS
    from stockpot.train.sparse.selectors import Magnitude as Magnitude
    from stockpot.train.sparse.selectors import Random as Random
    from stockpot.train.sparse.selectors import Selector as Selector
    from stockpot.train.sparse.selectors import SemiStructured as SemiStructured
    from stockpot.train.sparse.selectors import Structured as Structured
    from stockpot.train.sparse.selectors import UniformMagnitude as UniformMagnitude
    from stockpot.train.sparse.selectors import gradual_sparsity as gradual_sparsity
    from stockpot.train.sparse.selectors import n_zeros as n_zeros
    from stockpot.train.sparse.selectors import parse_selector as parse_selector
    from stockpot.train.sparse.selectors import phase_sparsities as phase_sparsities

__getattr__, __dir__ = lazy_exports(__name__, __file__)
