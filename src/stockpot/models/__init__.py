"""Tasks and splits, metrics, weights into a living model, BatchNorm recalibration."""

from __future__ import annotations

from stockpot.models.classification import ClassificationTask
from stockpot.models.metrics import Accuracy, CrossEntropy, MeanMetric, WholeMetric, metric_by_name
from stockpot.models.swap import load_weights
from stockpot.models.task import Metric, Role, Score, Split, Task

__all__ = [
    "Accuracy",
    "ClassificationTask",
    "CrossEntropy",
    "MeanMetric",
    "Metric",
    "Role",
    "Score",
    "Split",
    "Task",
    "WholeMetric",
    "load_weights",
    "metric_by_name",
]
