"""Ready-made tasks, tasks of other kinds, and the way from what `--task` says to a task."""

from __future__ import annotations

from stockpot.tasks.checks import check_fit, check_task
from stockpot.tasks.general import GeneralTask
from stockpot.tasks.resolve import resolve

__all__ = ["GeneralTask", "check_fit", "check_task", "resolve"]
