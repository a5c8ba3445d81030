"""How workers come by a task: as it was made here where it can be sent, else made again."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import TypeAlias

from stockpot.evaluate.task import Task

TaskOrMaker: TypeAlias = Task | Callable[[], Task]
"""A task, or a function without arguments that makes one: needed where a task cannot be sent."""

_LARGEST_SENT = 64 * 2**20


def make_task(task: TaskOrMaker | None) -> Task | None:
    """The task itself; made, where a function is given."""
    return task if task is None or isinstance(task, Task) else task()


def task_for_workers(
    task: TaskOrMaker | None, made: Task | None, *, n_workers: int | None
) -> Callable[[], Task | None]:
    """What each worker calls to have the task.

    Making one may take seconds (imports, rendered fonts), which every worker would spend before its
    first job; so what was `made` here is sent where that is possible.
    """
    if task is made or n_workers == 1:
        return functools.partial(make_task, made)
    try:
        packed = pickle.dumps(made)
    except Exception:  # lambdas, open files: what a user's task may hold
        packed = b""
    return functools.partial(_unpack, packed if len(packed) <= _LARGEST_SENT else b"", task)


def _unpack(packed: bytes, task: TaskOrMaker | None) -> Task | None:
    try:
        # Bytes that this very program packed, sent to its own worker; never those of a file.
        unpacked: Task = pickle.loads(packed)
    except Exception:  # of a module that only the file's own loader knows, for instance
        return make_task(task)
    return unpacked
