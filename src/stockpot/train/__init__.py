"""One fine-tuning loop, augmentation, and averages along a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.train.config import TrainConfig as TrainConfig
    from stockpot.train.loop import TrainResult as TrainResult
    from stockpot.train.loop import fine_tune as fine_tune
    from stockpot.train.pruning import DynamicPruning as DynamicPruning
    from stockpot.train.pruning import GradualPruning as GradualPruning
    from stockpot.train.sparse.prunable import prunable_names as prunable_names
    from stockpot.train.sparse.selectors import Magnitude as Magnitude
    from stockpot.train.sparse.selectors import phase_sparsities as phase_sparsities
    from stockpot.train.sweep.named import resolve_space as resolve_space
    from stockpot.train.sweep.options import SweepOptions as SweepOptions
    from stockpot.train.sweep.records import RunRecord as RunRecord
    from stockpot.train.sweep.records import read_runs as read_runs
    from stockpot.train.sweep.run import run_sweep as run_sweep
    from stockpot.train.zoo.options import ZooTuning as ZooTuning

__getattr__, __dir__ = lazy_exports(__name__, __file__)
