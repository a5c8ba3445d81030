"""Ready-made tasks, tasks of other kinds, and the way from what `--task` says to a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.tasks.checks import check_task as check_task
    from stockpot.tasks.classification import ClassificationTask as ClassificationTask
    from stockpot.tasks.general import GeneralTask as GeneralTask
    from stockpot.tasks.lookup import resolve as resolve

__getattr__, __dir__ = lazy_exports(__name__, __file__)
