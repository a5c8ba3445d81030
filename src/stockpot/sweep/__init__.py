"""Sweeps: many ingredients from one start, with hyper-parameters drawn from a space."""

from __future__ import annotations

from stockpot.sweep.named import NAMED, resolve_space
from stockpot.sweep.records import RunRecord, read_runs
from stockpot.sweep.run import SweepResult, run_sweep
from stockpot.sweep.space import (
    Choice,
    Constant,
    Distribution,
    Integer,
    LogUniform,
    Mixture,
    Space,
    Uniform,
)

__all__ = [
    "NAMED",
    "Choice",
    "Constant",
    "Distribution",
    "Integer",
    "LogUniform",
    "Mixture",
    "RunRecord",
    "Space",
    "SweepResult",
    "Uniform",
    "read_runs",
    "resolve_space",
    "run_sweep",
]
