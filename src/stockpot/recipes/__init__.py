"""Recipes decide mixing coefficients; `Soup` is what comes out."""

from __future__ import annotations

from stockpot.recipes.base import Recipe, Step
from stockpot.recipes.ensembles import EnsembleResult, ensemble, greedy_ensemble
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.soup import Soup
from stockpot.recipes.uniform import BestSingle, Uniform
from stockpot.recipes.wise_ft import WiseFT

__all__ = [
    "BestSingle",
    "EnsembleResult",
    "Greedy",
    "Recipe",
    "Soup",
    "Step",
    "Uniform",
    "WiseFT",
    "ensemble",
    "greedy_ensemble",
]
