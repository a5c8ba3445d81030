"""The recipes of this package: names, commands, documentation and tests follow from this table."""

from __future__ import annotations

from stockpot.recipes.auto import CANDIDATES, Auto
from stockpot.recipes.base import Recipe
from stockpot.recipes.trajectory import Trajectory

RECIPES: tuple[type[Recipe], ...] = (*CANDIDATES, Trajectory, Auto)
"""Every recipe."""
