"""Against a real local cluster of two nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockpot.workers import WorkerOptions, run_jobs

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from tests.workers.nodes import two_nodes

    with two_nodes() as address:
        yield address


def test_jobs_run_on_both_nodes_with_their_threads(cluster: str) -> None:
    def work(context, job):
        import time

        import ray

        time.sleep(0.5)
        node = ray.get_runtime_context().get_node_id()
        return node, os.environ["OMP_NUM_THREADS"], context + job

    arrived = []
    results = run_jobs(
        work, [1, 2, 3, 4], setup=lambda: 10, workers=WorkerOptions(ray=cluster),
        on_result=lambda result: arrived.append(result.name),
    )  # fmt: skip
    assert [r.value[2] for r in results] == [11, 12, 13, 14]
    assert len({r.value[0] for r in results}) == 2
    assert {r.value[1] for r in results} == {"1"}
    assert sorted(arrived) == ["0", "1", "2", "3"]
    assert not ray.is_initialized()


def test_failures_are_results_there_too(cluster: str, tmp_path: Path) -> None:
    def work(job):
        if job == "raises":
            raise ValueError("not this way")
        flag = tmp_path / job
        if job == "dies" or (job == "dies-once" and not flag.exists()):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    jobs = {name: name for name in ("fine", "raises", "dies", "dies-once")}
    results = {
        r.name: r for r in run_jobs(work, jobs, workers=WorkerOptions(n_workers=2, ray=cluster))
    }
    assert results["fine"].value == "fine"
    assert results["dies-once"].value == "dies-once"
    assert results["raises"].error.type == "ValueError"
    assert "dies was lost twice" in results["dies"].error.message
