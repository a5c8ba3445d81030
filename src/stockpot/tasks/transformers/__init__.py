"""Tasks on transformers models, written down in a `task.yaml`."""

from __future__ import annotations

from stockpot.tasks.transformers.build import load_task, make_task, share_head
from stockpot.tasks.transformers.taskfile import TaskFile, parse_task_file

__all__ = ["TaskFile", "load_task", "make_task", "parse_task_file", "share_head"]
