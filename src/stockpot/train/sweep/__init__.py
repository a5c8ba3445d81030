"""Sweeps: many ingredients from one start, with hyper-parameters drawn from a space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.train.sweep.named import NAMED as NAMED
    from stockpot.train.sweep.named import resolve_space as resolve_space
    from stockpot.train.sweep.options import SweepOptions as SweepOptions
    from stockpot.train.sweep.records import RunRecord as RunRecord
    from stockpot.train.sweep.records import read_runs as read_runs
    from stockpot.train.sweep.run import SweepResult as SweepResult
    from stockpot.train.sweep.run import run_sweep as run_sweep
    from stockpot.train.sweep.space import Choice as Choice
    from stockpot.train.sweep.space import Constant as Constant
    from stockpot.train.sweep.space import Distribution as Distribution
    from stockpot.train.sweep.space import Integer as Integer
    from stockpot.train.sweep.space import LogUniform as LogUniform
    from stockpot.train.sweep.space import Mixture as Mixture
    from stockpot.train.sweep.space import Space as Space
    from stockpot.train.sweep.space import Uniform as Uniform

__getattr__, __dir__ = lazy_exports(__name__, __file__)
