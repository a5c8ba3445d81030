"""Local worker processes (loky, which joblib brings)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stockpot.errors import WorkerError
from stockpot.io.kernel import keep_freed_memory
from stockpot.io.scratch import scratch_folder
from stockpot.workers.jobs import JobError, JobResult, call_job

R = TypeVar("R")

# One per worker process, made by its first job: how `setup` runs once per worker.
_contexts: dict[str, Any] = {}


_SAFE = "PYTHONSAFEPATH"


def thread_variables(threads: int) -> dict[str, str]:
    """Environment of a worker: what makes torch, OpenMP and BLAS use `threads` threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def run_in_processes(
    fn: Callable[..., R],
    jobs: Mapping[str, Any],
    setup: Callable[[], Any] | None,
    *,
    n_workers: int,
    threads: int,
) -> Iterator[JobResult[R]]:
    """Results of `jobs` as they are done.

    loky does not say which job killed a worker, and then fails all that are pending. Each job
    therefore leaves a file when it starts; the jobs that had started run again one by one, where a
    second death can have only one cause, and the rest go on side by side.
    """
    left = dict(jobs)
    deaths_before_start = 0
    with scratch_folder() as folder:
        starts = _Starts(folder, {name: str(i) for i, name in enumerate(jobs)})
        while left:
            for result in _pass(fn, left, setup, starts, n_workers, threads):
                del left[result.name]
                yield result
            suspects = [name for name in left if starts.has(name)]
            if not suspects and left:
                deaths_before_start += 1
                if deaths_before_start > 1:
                    raise WorkerError(
                        "worker processes die before they start any job; run with one worker to "
                        "see why, or check that there is memory for several",
                        list(left),
                    )
            for name in suspects:
                yield _once_more(fn, name, left.pop(name), setup, starts, threads)


class _Starts:
    """Files that say which jobs have started; values travel to the workers, so it holds paths."""

    def __init__(self, folder: Path, marks: Mapping[str, str]) -> None:
        self.folder = folder
        self.marks = marks

    def path(self, name: str) -> Path:
        return self.folder / self.marks[name]

    def has(self, name: str) -> bool:
        return self.path(name).exists()


def _pass(
    fn: Callable[..., R],
    jobs: Mapping[str, Any],
    setup: Callable[[], Any] | None,
    starts: _Starts,
    n_workers: int,
    threads: int,
) -> Iterator[JobResult[R]]:
    """Results of all jobs, or of those done before a worker died."""
    from joblib.externals.loky.process_executor import ProcessPoolExecutor

    given = os.environ.get(_SAFE)
    done = False
    # Python puts the current folder first on the path of what starts with -c or -m, as workers and
    # the process that tracks their resources do: a joblib.py there would run.
    with _environment({_SAFE: "1"}):
        pool = ProcessPoolExecutor(
            max_workers=min(n_workers, len(jobs)),
            env=thread_variables(threads),
            initializer=_begin_worker,
            initargs=(os.getpid(), given),
        )
        futures = [
            pool.submit(_work, fn, name, job, setup, starts.path(name))
            for name, job in jobs.items()
        ]
    try:
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            yield result
        done = True
    finally:
        # Interrupted, the workers are in the middle of jobs that nobody waits for any more.
        pool.shutdown(wait=True, kill_workers=not done)


def _once_more(
    fn: Callable[..., R],
    name: str,
    job: Any,
    setup: Callable[[], Any] | None,
    starts: _Starts,
    threads: int,
) -> JobResult[R]:
    started = time.perf_counter()
    for result in _pass(fn, {name: job}, setup, starts, 1, threads):
        return JobResult(name, result.value, result.error, result.seconds, attempts=2)
    message = (
        f"the process that ran {name} died twice without a Python error: out of memory, or a crash "
        "in native code; try fewer workers, a smaller batch, or run it with one worker"
    )
    error = JobError("WorkerDied", message, "")
    return JobResult(name, None, error, time.perf_counter() - started, attempts=2)


def _work(
    fn: Callable[..., R], name: str, job: Any, setup: Callable[[], Any] | None, start: Path
) -> JobResult[R]:
    start.touch()

    def call() -> R:
        if setup is None:
            return fn(job)
        if "context" not in _contexts:
            _contexts["context"] = setup()
        return fn(_contexts["context"], job)

    return call_job(name, call)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in the environment while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _begin_worker(parent: int, safe_path: str | None) -> None:
    """Programs that jobs start find what lies beside them, as without workers."""
    keep_freed_memory()
    _restore({_SAFE: safe_path})
    _watch_parent(parent)


def _watch_parent(parent: int) -> None:
    """Let this worker end with the process that started it, even when that one was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="stockpot-watch-parent").start()
