"""One fine-tuning loop, augmentation, and averages along a run."""

from __future__ import annotations

from stockpot.training.config import TrainConfig
from stockpot.training.ema import ExponentialMean, RunningMean
from stockpot.training.loop import EpochRecord, TrainResult, fine_tune
from stockpot.training.pruning import DynamicPruning, GradualPruning, Pruning
from stockpot.training.retraining import retrain_config
from stockpot.training.schedule import learning_rate

__all__ = [
    "DynamicPruning",
    "EpochRecord",
    "ExponentialMean",
    "GradualPruning",
    "Pruning",
    "RunningMean",
    "TrainConfig",
    "TrainResult",
    "fine_tune",
    "learning_rate",
    "retrain_config",
]
