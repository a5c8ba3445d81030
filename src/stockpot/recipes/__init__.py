"""Recipes decide mixing coefficients; `Soup` is what comes out."""

from __future__ import annotations

from stockpot.recipes.auto import Auto
from stockpot.recipes.base import Recipe, Step
from stockpot.recipes.ensembles import EnsembleResult, ensemble, greedy_ensemble
from stockpot.recipes.explain import Finding, explain
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.learned import Learned
from stockpot.recipes.pruned import Pruned
from stockpot.recipes.soup import Soup
from stockpot.recipes.uniform import BestSingle, Uniform
from stockpot.recipes.wise_ft import WiseFT

__all__ = [
    "Auto",
    "BestSingle",
    "EnsembleResult",
    "Finding",
    "Greedy",
    "Learned",
    "Pruned",
    "Recipe",
    "Soup",
    "Step",
    "Uniform",
    "WiseFT",
    "ensemble",
    "explain",
    "greedy_ensemble",
]
