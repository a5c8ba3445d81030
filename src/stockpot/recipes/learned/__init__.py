"""Learned soups: mixing coefficients fitted on held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.recipes.learned.recipe import Learned as Learned
    from stockpot.recipes.learned.recipe import LearnedDetails as LearnedDetails

__getattr__, __dir__ = lazy_exports(__name__, __file__)
