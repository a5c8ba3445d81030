"""The recipes of this package: names, commands, documentation and tests follow from this table."""

from __future__ import annotations

from stockpot.recipes.auto import Auto
from stockpot.recipes.auto_details import CANDIDATES, FURTHER
from stockpot.recipes.base import Recipe
from stockpot.recipes.trajectory import Trajectory

RECIPES: tuple[type[Recipe], ...] = (
    *CANDIDATES,
    *FURTHER,
    Trajectory,
    Auto,
)
"""Every recipe."""
