"""Jobs: how they run, how one is called, and what comes of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stockpot._options import option
from stockpot.errors import WorkerError

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How jobs run side by side; of all this, only `threads` may change what comes of them.

    Attributes:
        n_workers: processes; None for as many as fit. One means this very process.
        threads: of each worker, for torch and BLAS; None shares the cores among the workers.
        ray: the address of a Ray cluster to run on instead (`"auto"`, `"host:port"`), or `"local"`
            to start one of this machine for the duration.
        gpus_per_job: of the Ray cluster; a fraction shares a GPU.
    """

    n_workers: int | None = option(
        None, flags=("--workers",), minimum=1, help="Processes side by side; default: all that fit."
    )
    threads: int | None = option(1, minimum=1, help="Of each worker; results depend on it.")
    ray: str | None = option(None, metavar="ADDRESS", help="Run on a Ray cluster, or local.")
    gpus_per_job: float = option(0.0, flags=("--gpus-per-run",), help="Of the Ray cluster.")


ONE_WORKER = WorkerOptions(n_workers=1)
"""Everything in this process, on one thread."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, as text: exceptions do not always survive the way between processes."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class JobResult(Generic[R]):
    """What came of the job `name`: `value`, or None and `error`.

    `seconds` is the time in the worker, of the last of `attempts`.
    """

    name: str
    value: R | None
    error: JobError | None
    seconds: float
    attempts: int = 1


def call_job(name: str, call: Callable[[], R]) -> JobResult[R]:
    """Run one job. Whatever it raises becomes its result, so that it does not stop the others."""
    started = time.perf_counter()
    try:
        value = call()
    except Exception as error:  # the code is the user's and may raise anything
        text = "".join(traceback.format_exception(error))
        failed = JobError(type(error).__name__, str(error), text)
        return JobResult(name, None, failed, time.perf_counter() - started)
    return JobResult(name, value, None, time.perf_counter() - started)


def raise_failures(results: Iterable[JobResult[Any]]) -> None:
    """Raise when a job failed.

    Raises:
        WorkerError: naming every failed job with its reason; `.jobs` holds the names.
    """
    failed = [(r.name, r.error) for r in results if r.error is not None]
    if failed:
        lines = [f"  {name}: {error.type}: {error.message}" for name, error in failed]
        raise WorkerError(
            f"{len(failed)} jobs failed:\n" + "\n".join(lines), [name for name, _ in failed]
        )
