"""A sweep on a real local Ray cluster of two nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.train.sweep.test_run import contents, sweep
from tests.workers.nodes import two_nodes

from stockpot.workers import WorkerOptions

pytest.importorskip("ray")
pytestmark = pytest.mark.extras


def test_a_cluster_makes_the_checkpoints_of_one_process(tmp_path: Path) -> None:
    sweep(tmp_path / "here", 3)
    seen = []
    with two_nodes() as address:
        result = sweep(
            tmp_path / "cluster", 3, workers=WorkerOptions(ray=address, n_workers=2),
            on_run=lambda record: seen.append(record.name),
        )  # fmt: skip
    assert [run.error for run in result.runs] == [None] * 3
    assert contents(tmp_path / "cluster") == contents(tmp_path / "here")
    assert sorted(seen) == ["run-00", "run-01", "run-02"]
