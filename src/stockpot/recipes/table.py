"""The recipes of this package: names, commands, documentation and tests follow from this table."""

from __future__ import annotations

from stockpot.recipes.auto import Auto
from stockpot.recipes.auto_details import CANDIDATES
from stockpot.recipes.base import Recipe
from stockpot.recipes.model_stock import ModelStock
from stockpot.recipes.slerp import Slerp
from stockpot.recipes.task_arithmetic import TaskArithmetic
from stockpot.recipes.trajectory import Trajectory

RECIPES: tuple[type[Recipe], ...] = (
    *CANDIDATES,
    TaskArithmetic,
    ModelStock,
    Slerp,
    Trajectory,
    Auto,
)
"""Every recipe."""
