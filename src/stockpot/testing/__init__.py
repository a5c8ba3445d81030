"""Suites that every reader, task and recipe passes, for those who write another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.testing.readers import READER_CHECKS as READER_CHECKS
    from stockpot.testing.readers import reader_conformance as reader_conformance
    from stockpot.testing.readers import sample_tensors as sample_tensors
    from stockpot.testing.recipes import RECIPE_CHECKS as RECIPE_CHECKS
    from stockpot.testing.recipes import RecipeCase as RecipeCase
    from stockpot.testing.recipes import recipe_conformance as recipe_conformance
    from stockpot.testing.tasks import TASK_CHECKS as TASK_CHECKS
    from stockpot.testing.tasks import task_conformance as task_conformance

__getattr__, __dir__ = lazy_exports(__name__, __file__)
