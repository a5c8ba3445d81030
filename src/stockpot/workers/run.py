"""The one seam through which jobs run side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from stockpot.errors import WorkerError
from stockpot.workers.jobs import ONE_WORKER, JobResult, WorkerOptions, call_job

R = TypeVar("R")


def plan_workers(n_workers: int | None, *, threads: int | None = 1, n_jobs: int) -> tuple[int, int]:
    """Workers and threads per worker whose product does not exceed the cores of this machine.

    The number of threads is kept as asked, because results may depend on it; the number of workers
    is lowered to what fits, because results do not.

    Args:
        n_workers: None for as many as fit.
        threads: per worker; None shares the cores among the workers.
        n_jobs: no more workers than this.

    Raises:
        WorkerError: `threads` alone exceed the cores, or a number is below 1.

    >>> plan_workers(1, threads=1, n_jobs=12)
    (1, 1)
    """
    import joblib

    cores: int = joblib.cpu_count()
    if min(1 if n_workers is None else n_workers, 1 if threads is None else threads) < 1:
        raise WorkerError(f"{n_workers} workers of {threads} threads; expected at least 1 of each")
    if threads is not None and threads > cores:
        raise WorkerError(
            f"{threads} threads per worker on a machine of {cores} cores; ask for at most {cores}"
        )
    fitting = cores if threads is None else cores // threads
    workers = max(1, min(fitting, n_jobs, fitting if n_workers is None else n_workers))
    return workers, max(1, cores // workers) if threads is None else threads


def run_jobs(
    fn: Callable[..., R],
    jobs: Mapping[str, Any] | Sequence[Any],
    *,
    setup: Callable[[], Any] | None = None,
    workers: WorkerOptions = ONE_WORKER,
    on_result: Callable[[JobResult[R]], None] | None = None,
) -> list[JobResult[R]]:
    """`fn(job)` for every job, or `fn(context, job)` when `setup` makes a context for each worker.

    A job that raises has the exception as its result and does not stop the others. A worker that
    dies (out of memory, a crash in native code) takes no other job's result with it: what it may
    have been running runs once more, by itself, and fails under its name if the process dies again.
    One worker means this very process, where a crash cannot be survived.

    Args:
        fn: runs in another process, so it must not count on globals; closures and lambdas are fine.
        jobs: what is given to `fn`, by name; a sequence is named `"0"`, `"1"`, ….
        setup: makes what all jobs of a worker share (a loaded task), once per worker.
        workers: how many, and where; see `plan_workers` for what fits on this machine.
        on_result: called in this process with each result as it arrives, in any order.

    Returns:
        All results, in the order of the jobs.

    Raises:
        WorkerError: workers die before they start any job.

    >>> [result.value for result in run_jobs(lambda job: job**2, [1, 2, 3])]
    [1, 4, 9]
    """
    named = dict(jobs) if isinstance(jobs, Mapping) else {str(i): j for i, j in enumerate(jobs)}
    results: dict[str, JobResult[R]] = {}
    if workers.ray is not None:
        from stockpot.workers.cluster import run_on_ray

        arriving = run_on_ray(fn, named, setup, workers)
    else:
        n_workers, threads = plan_workers(
            workers.n_workers, threads=workers.threads, n_jobs=len(named)
        )
        if n_workers == 1:
            arriving = _run_here(fn, named, setup, threads)
        else:
            from stockpot.workers.processes import run_in_processes

            arriving = run_in_processes(fn, named, setup, n_workers=n_workers, threads=threads)
    for result in arriving:
        results[result.name] = result
        if on_result is not None:
            on_result(result)
    return [results[name] for name in named]


def _run_here(
    fn: Callable[..., R], jobs: Mapping[str, Any], setup: Callable[[], Any] | None, threads: int
) -> Iterator[JobResult[R]]:
    context = () if setup is None or not jobs else (setup(),)
    for name, job in jobs.items():
        with _torch_threads(threads):
            result = call_job(name, lambda job=job: fn(*context, job))  # type: ignore[misc]
        yield result


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """This many threads in torch inside; jobs that import torch first set nothing here."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
