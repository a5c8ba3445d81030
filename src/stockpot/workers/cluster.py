"""The same jobs on a Ray cluster, as plain tasks."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stockpot._optional import require
from stockpot._tracebacks import one_line
from stockpot.errors import WorkerError
from stockpot.io.kernel import keep_freed_memory
from stockpot.io.scratch import scratch_folder
from stockpot.workers.jobs import JobError, JobResult, WorkerOptions, call_job
from stockpot.workers.processes import thread_variables

R = TypeVar("R")

# One context per worker process and call of `run_on_ray`; the newest only, to free the others.
_contexts: dict[str, Any] = {}

# Who may submit work to the processes of `--ray local`: this process alone. Ray reads it once.
_TOKEN = secrets.token_hex(32)


def run_on_ray(
    fn: Callable[..., R],
    jobs: Mapping[str, Any],
    setup: Callable[[], Any] | None,
    workers: WorkerOptions,
) -> Iterator[JobResult[R]]:
    """Results of `jobs` as they are done on the cluster at `workers.ray`.

    Each job is a task of `threads` CPUs and `gpus_per_job` GPUs that Ray starts once more when its
    worker or node dies, on the node with the least to do. `n_workers` limits how many are under
    way; None leaves it to the cluster. A job's files have to lie where all nodes see them; relative
    paths are those of this process.
    """
    threads, n_workers = workers.threads or 1, workers.n_workers
    with connected(workers.ray or "auto") as ray:
        task = ray.remote(
            num_cpus=threads,
            num_gpus=workers.gpus_per_job,
            max_retries=1,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": thread_variables(threads)},
        )(_work)
        shared = ray.put((fn, setup, str(Path.cwd())))
        key = os.urandom(8).hex()
        waiting, running = list(jobs), dict[Any, str]()
        limit = len(jobs) if n_workers is None else n_workers
        started = time.perf_counter()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    name = waiting.pop(0)
                    running[task.remote(shared, key, name, jobs[name])] = name
                done, _ = ray.wait(list(running), num_returns=1)
                name = running.pop(done[0])
                yield _result(ray, done[0], name, started)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, name: str, started: float) -> JobResult[Any]:
    try:
        result: JobResult[Any] = ray.get(reference)
    except ray.exceptions.RayError as error:
        kind, text = type(error).__name__, f"the worker that ran {name} was lost twice: {error}"
        lost = JobError(kind, text, "")
        return JobResult(name, None, lost, time.perf_counter() - started, attempts=2)
    return result


def n_nodes(address: str) -> int:
    """How many nodes of the cluster at `address` are alive."""
    with connected(address) as ray:
        return sum(node["Alive"] for node in ray.nodes())


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster; disconnected afterwards unless the caller already was.

    Raises:
        OptionalDependencyError: Ray is not installed.
        WorkerError: there is no cluster at `address`.
    """
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address != "local":
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError) as error:
            raise WorkerError(
                f"there is no Ray cluster at {address} ({one_line(error)}); start one with "
                "`ray start --head`, or use local (--ray local)"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    # A folder of its own: the default one is shared by everybody on the machine.
    with (
        scratch_folder() as folder,
        _private_processes(),
    ):
        ray.init(address="local", _temp_dir=str(folder), include_dashboard=False, **quiet)
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _private_processes() -> Iterator[None]:
    """Ray processes that start meanwhile listen to and talk with nobody beyond this machine.

    Without a dashboard Ray still starts a server for its usage statistics, which asks the cloud's
    metadata address what machine this is *before* it looks whether statistics are wanted. No
    option keeps it away, so the one method that starts it does nothing here. Ray listens on
    loopback alone where no cluster can be, by a constant of the platform. Without a token in the
    environment it would write one to the home folder, which a container need not have.
    """
    from unittest import mock

    from ray._private import ray_constants
    from ray._private.node import Node

    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", _TOKEN),
    }
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(Node, "start_api_server", return_value=None),
        mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False),
    ):
        yield


def _work(
    shared: tuple[Callable[..., R], Callable[[], Any] | None, str], key: str, name: str, job: Any
) -> JobResult[R]:
    fn, setup, folder = shared
    keep_freed_memory()

    def call() -> R:
        with contextlib.suppress(OSError):  # jobs whose paths are absolute need no such folder
            os.chdir(folder)
        if setup is None:
            return fn(job)
        if key not in _contexts:
            _contexts.clear()
            _contexts[key] = setup()
        return fn(_contexts[key], job)

    return call_job(name, call)
