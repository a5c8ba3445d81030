"""Ready-made tasks, and the way from what `--task` says to a task."""

from __future__ import annotations

from stockpot.tasks.resolve import resolve

__all__ = ["resolve"]
