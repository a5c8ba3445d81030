"""Scoring on the splits of a task, journalled by content."""

from __future__ import annotations

from stockpot.evaluation.choosing import split_to_choose_on
from stockpot.evaluation.external import ExternalEvaluator
from stockpot.evaluation.journal import Journal
from stockpot.evaluation.scoring import Evaluator, Predictions, scores_to_json

__all__ = [
    "Evaluator",
    "ExternalEvaluator",
    "Journal",
    "Predictions",
    "scores_to_json",
    "split_to_choose_on",
]
