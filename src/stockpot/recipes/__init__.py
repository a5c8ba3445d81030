"""Recipes decide mixing coefficients; `Soup` is what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.recipes.auto import Auto as Auto
    from stockpot.recipes.base import Recipe as Recipe
    from stockpot.recipes.base import Solution as Solution
    from stockpot.recipes.context import RecipeContext as RecipeContext
    from stockpot.recipes.ensembles import ensemble as ensemble
    from stockpot.recipes.ensembles import greedy_ensemble as greedy_ensemble
    from stockpot.recipes.ensembles import mean_logits as mean_logits
    from stockpot.recipes.greedy import Greedy as Greedy
    from stockpot.recipes.greedy import Pruned as Pruned
    from stockpot.recipes.learned.recipe import Learned as Learned
    from stockpot.recipes.model_stock import ModelStock as ModelStock
    from stockpot.recipes.record import verify as verify
    from stockpot.recipes.result import Details as Details
    from stockpot.recipes.result import Step as Step
    from stockpot.recipes.simple import BestSingle as BestSingle
    from stockpot.recipes.simple import Uniform as Uniform
    from stockpot.recipes.slerp import Slerp as Slerp
    from stockpot.recipes.soce import SoCE as SoCE
    from stockpot.recipes.soup import Soup as Soup
    from stockpot.recipes.table import RECIPES as RECIPES
    from stockpot.recipes.task_arithmetic import TaskArithmetic as TaskArithmetic
    from stockpot.recipes.trajectory import Trajectory as Trajectory
    from stockpot.recipes.wise_ft import WiseFT as WiseFT

__getattr__, __dir__ = lazy_exports(__name__, __file__)
