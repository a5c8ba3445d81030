from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot.errors import WorkerError
from stockpot.workers import WorkerOptions, raise_failures, run_jobs
from stockpot.workers.processes import run_in_processes


def in_processes(fn, jobs, setup=None, threads=1):
    found = run_in_processes(fn, dict(jobs), setup, n_workers=2, threads=threads)
    return {result.name: result for result in found}


def test_every_job_runs_in_another_process_with_its_threads() -> None:
    def work(job):
        import torch

        return os.getpid(), torch.get_num_threads(), job

    results = in_processes(work, {str(i): i for i in range(6)}, threads=2)
    assert [results[str(i)].value[2] for i in range(6)] == list(range(6))
    assert os.getpid() not in {r.value[0] for r in results.values()}
    assert {r.value[1] for r in results.values()} == {2}


def test_the_context_is_made_once_per_worker(tmp_path: Path) -> None:
    def setup():
        (tmp_path / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return 10

    results = in_processes(lambda context, job: context + job, {str(i): i for i in range(8)}, setup)
    assert [results[str(i)].value for i in range(8)] == list(range(10, 18))
    made = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert len(made) == len(set(made)) <= 2


def test_results_arrive_as_they_are_done() -> None:
    def work(seconds):
        time.sleep(seconds)

    order = [r.name for r in run_in_processes(
        work, {"slow": 1.0, "fast": 0.0, "next": 0.0}, None, n_workers=2, threads=1
    )]  # fmt: skip
    assert order[-1] == "slow"


def test_a_job_that_raises_keeps_its_traceback_and_stops_nobody() -> None:
    def work(job):
        if job == 1:
            raise KeyError("no such thing")
        return job

    results = in_processes(work, {"a": 0, "b": 1, "c": 2})
    assert (results["a"].value, results["c"].value) == (0, 2)
    error = results["b"].error
    assert error is not None
    assert (error.type, "no such thing" in error.message) == ("KeyError", True)
    assert "in work" in error.traceback
    with pytest.raises(WorkerError, match="b: KeyError") as caught:
        raise_failures(results.values())
    assert caught.value.jobs == ("b",)


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    def work(job):
        flag = tmp_path / "died"
        if job == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    results = in_processes(work, {str(i): i for i in range(5)})
    assert [results[str(i)].value for i in range(5)] == list(range(5))
    assert results["2"].attempts == 2


def test_a_job_that_kills_its_worker_twice_is_named() -> None:
    def work(job):
        if job == "bad":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return job

    results = in_processes(work, {name: name for name in ("a", "bad", "c", "d")})
    assert [results[name].value for name in "acd"] == ["a", "c", "d"]
    error = results["bad"].error
    assert error is not None
    assert "died twice" in error.message
    assert error.type == "WorkerDied"


def test_an_error_of_the_caller_ends_the_workers() -> None:
    pids = []

    def work(job):
        time.sleep(job)
        return os.getpid()

    def on_result(result):
        pids.append(result.value)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run_jobs(work, [0.0, 60.0], workers=WorkerOptions(n_workers=2), on_result=on_result)
    assert len(pids) == 1


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, time
from stockpot.workers.processes import run_in_processes
def work(job):
    (pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch()
    time.sleep(60)
list(run_in_processes(work, {{"a": 1, "b": 2}}, None, n_workers=2, threads=1))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        _wait(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    _wait(lambda: not any(_alive(pid) for pid in pids))
    assert not any(_alive(pid) for pid in pids)


def _wait(condition) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not condition():
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
