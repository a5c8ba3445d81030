"""Suites that every reader, task and recipe passes, for those who write another."""

from __future__ import annotations

from stockpot.testing.readers import READER_CHECKS, reader_conformance, sample_tensors
from stockpot.testing.recipes import RECIPE_CHECKS, RecipeCase, recipe_conformance
from stockpot.testing.tasks import TASK_CHECKS, task_conformance

__all__ = [
    "READER_CHECKS",
    "RECIPE_CHECKS",
    "TASK_CHECKS",
    "RecipeCase",
    "reader_conformance",
    "recipe_conformance",
    "sample_tensors",
    "task_conformance",
]
