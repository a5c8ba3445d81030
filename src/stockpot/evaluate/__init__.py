"""Scoring on the splits of a task, journalled by content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.evaluate.callable import CallableEvaluator as CallableEvaluator
    from stockpot.evaluate.command import CommandEvaluator as CommandEvaluator
    from stockpot.evaluate.compare import Difference as Difference
    from stockpot.evaluate.compare import Predictions as Predictions
    from stockpot.evaluate.compare import paired_difference as paired_difference
    from stockpot.evaluate.compare import scores_to_json as scores_to_json
    from stockpot.evaluate.evaluator import Evaluator as Evaluator
    from stockpot.evaluate.journal import Journal as Journal
    from stockpot.evaluate.metrics import Accuracy as Accuracy
    from stockpot.evaluate.metrics import CrossEntropy as CrossEntropy
    from stockpot.evaluate.metrics import MeanMetric as MeanMetric
    from stockpot.evaluate.metrics import WholeMetric as WholeMetric
    from stockpot.evaluate.splits import part_of as part_of
    from stockpot.evaluate.splits import split_fingerprint as split_fingerprint
    from stockpot.evaluate.splits import split_to_choose_on as split_to_choose_on
    from stockpot.evaluate.splits import with_splits as with_splits
    from stockpot.evaluate.task import Metric as Metric
    from stockpot.evaluate.task import Role as Role
    from stockpot.evaluate.task import Score as Score
    from stockpot.evaluate.task import Split as Split
    from stockpot.evaluate.task import Task as Task
    from stockpot.evaluate.task_evaluator import TaskEvaluator as TaskEvaluator

__getattr__, __dir__ = lazy_exports(__name__, __file__)
