"""Against a real local cluster of two nodes."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
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


PRIVATE = """
import os
from pathlib import Path
from stockpot.workers import WorkerOptions, run_jobs

def processes(folder):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if folder in command:
            yield command, links

def work(job):
    found = list(processes(os.environ["TMPDIR"] + "/stockpot-"))
    inodes = {link[8:-1] for _, links in found for link in links if link.startswith("socket:[")}
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[9] in inodes
    ]
    return len(found), [c for c, _ in found if "dashboard.py" in c], listening

(result,) = run_jobs(work, ["job"], workers=WorkerOptions(ray="local"))
print(*result.value, sep="\\n")
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into /proc")
def test_a_local_ray_talks_to_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    # Ray's sockets have long names.
    with tempfile.TemporaryDirectory(prefix="sp") as folder:
        home = Path(folder, "home")
        home.mkdir()
        environment = {**os.environ, "HOME": str(home), "TMPDIR": folder}
        run = subprocess.run(
            [sys.executable, "-c", PRIVATE], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        n_processes, dashboards, listening = map(ast.literal_eval, run.stdout.splitlines())
        assert n_processes >= 3
        assert dashboards == []
        loopback = ("0100007F:", "0000000000000000FFFF00000100007F:")  # the second as IPv6
        assert listening
        assert all(address.startswith(loopback) for address in listening)
        assert list(home.iterdir()) == []
        assert list(Path(folder).iterdir()) == [home]
