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


@pytest.fixture
def joined(cluster: str) -> Iterator[str]:
    """The cluster, with this process connected all the while: workers stay between calls."""
    from stockpot.workers.cluster import connected

    with connected(cluster):
        yield cluster


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models, their base and a task, named by relative paths."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("base", "a", "b", "c")):
        torch.manual_seed(i)
        net = torch.nn.Sequential(torch.nn.Linear(6, 300), torch.nn.BatchNorm1d(300),
                                  torch.nn.ReLU(), torch.nn.Linear(300, 3))  # fmt: skip
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    (folder / "my_task.py").write_text(
        "import torch\n"
        "from stockpot import ClassificationTask, Role, Split\n"
        "from torch.utils.data import TensorDataset\n"
        "torch.manual_seed(9)\n"
        "def data(n): return TensorDataset(torch.randn(n, 6), torch.randint(0, 3, (n,)))\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 300), torch.nn.BatchNorm1d(300),\n"
        "                               torch.nn.ReLU(), torch.nn.Linear(300, 3))\n"
        "task = ClassificationTask(build=build, splits={\n"
        "    'val': Split(data(200)), 'test': Split(data(150), role=Role.TEST)},\n"
        "    train_set=data(64), batch_size=16)\n"
    )
    return folder


def test_an_average_is_made_by_the_nodes_with_the_bytes_of_one_machine(
    joined: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stockpot
    from stockpot.cli import main

    monkeypatch.chdir(models)
    given = ["a.safetensors", "b.safetensors", "c.safetensors", "--max-shard-size", "4KB"]
    assert main(["average", *given, "-o", "alone"]) == 0
    assert main(["average", *given, "-o", "together", "--ray", joined, "--json"]) == 0
    said = capsys.readouterr().out
    assert '"output": "together"' in said
    assert "complete" not in said
    weights = sorted(path.name for path in (models / "alone").glob("*.safetensors"))
    assert len(weights) > 2
    for name in weights:
        assert (models / "together" / name).read_bytes() == (models / "alone" / name).read_bytes()
    assert stockpot.verify("together") == []
    assert not list(models.glob(".together*"))
    # Nothing is overwritten, and what cannot be divided is refused as on ranks.
    assert main(["average", *given, "-o", "together", "--ray", joined]) == 1
    assert main(["average", *given, "-o", "one.safetensors", "--ray", joined]) == 1
    assert "folder" in capsys.readouterr().err


def test_greedy_scored_by_the_cluster_is_that_of_one_process(
    cluster: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stockpot.cli import main

    monkeypatch.chdir(models)
    given = ["greedy", "a.safetensors", "b.safetensors", "c.safetensors", "--no-journal",
             "--task", "my_task.py:task", "--device", "cpu"]  # fmt: skip
    for policy in ("recalibrated", "averaged"):
        options = ["--batchnorm", policy]
        alone, there = f"{policy}-alone.safetensors", f"{policy}-there.safetensors"
        assert main([*given, *options, "-o", alone]) == 0
        assert main([*given, *options, "-o", there, "--ray", cluster]) == 0
        assert Path(there).read_bytes() == Path(alone).read_bytes()
    assert not ray.is_initialized()


def test_a_lost_worker_is_replaced_and_an_error_of_the_task_is_raised_here(
    joined: str, tmp_path: Path
) -> None:
    import numpy as np
    import torch
    from torch.utils.data import TensorDataset

    import stockpot
    from stockpot.errors import EvaluationError
    from stockpot.evaluate.cluster_pool import Cluster

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(100, 6), torch.randint(0, 3, (100,)))
    net = torch.nn.Linear(6, 3, dtype=torch.bfloat16)  # NumPy has no such type
    flag = tmp_path / "died"

    def dies_once(model, batch):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return model(batch[0].bfloat16())

    def fails(model, batch):
        raise ValueError("not on this data")

    def score(predict, **options):
        task = stockpot.ClassificationTask(
            build=lambda: torch.nn.Linear(6, 3, dtype=torch.bfloat16),
            splits={"val": stockpot.Split(data)}, predict=predict,
        )  # fmt: skip
        with stockpot.TaskEvaluator(task, device="cpu", **options) as evaluator:
            return evaluator.predictions(stockpot.from_state_dict(net), "val").outputs

    there = score(dies_once, cluster=Cluster(joined, n_workers=2))
    assert np.array_equal(there, score(dies_once))
    with pytest.raises(EvaluationError, match="not on this data"):
        score(fails, cluster=Cluster(joined))
    with pytest.raises(EvaluationError, match="no room for a worker of 4 GPUs"):
        score(dies_once, cluster=Cluster(joined, gpus_per_worker=4))


def test_a_cluster_that_is_not_there_is_named(models: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from stockpot.cli import main

    monkeypatch.chdir(models)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = ["average", "a.safetensors", "b.safetensors", "-o", "nowhere"]
    assert main([*given, "--ray", "localhost:1:2:3"]) == 1
    assert "--ray local" in capsys.readouterr().err
    assert main([*given, "--ray", "local", "--nodes", "2", "--node-rank", "0"]) == 2
    assert not Path("nowhere").exists()
