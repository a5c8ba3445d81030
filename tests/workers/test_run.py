from __future__ import annotations

import os

import joblib
import pytest
import torch

from stockpot.errors import WorkerError
from stockpot.workers import WorkerOptions, run_jobs
from stockpot.workers.run import plan_workers


@pytest.mark.parametrize(
    ("n_workers", "threads", "n_jobs", "cores", "expected"),
    [
        (2, 1, 12, 4, (2, 1)),
        (8, 1, 12, 4, (4, 1)),
        (8, 2, 12, 4, (2, 2)),
        (None, 1, 12, 4, (4, 1)),
        (None, 1, 3, 4, (3, 1)),
        (2, None, 12, 8, (2, 4)),
        (3, None, 12, 8, (3, 2)),
        (2, 1, 12, 1, (1, 1)),
    ],
)
def test_workers_times_threads_stay_within_the_cores(
    monkeypatch, n_workers, threads, n_jobs, cores, expected
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    assert plan_workers(n_workers, threads=threads, n_jobs=n_jobs) == expected


@pytest.mark.parametrize(("n_workers", "threads"), [(1, 10_000), (0, 1), (1, 0)])
def test_impossible_numbers_are_refused(n_workers, threads) -> None:
    with pytest.raises(WorkerError, match=r"expected at least 1|ask for at most"):
        plan_workers(n_workers, threads=threads, n_jobs=4)


def test_one_worker_is_this_process_and_leaves_its_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    results = run_jobs(lambda job: (os.getpid(), torch.get_num_threads()), [1, 2])
    assert [result.value for result in results] == [(os.getpid(), 1)] * 2
    assert torch.get_num_threads() == before


def test_results_come_back_in_the_order_of_the_jobs() -> None:
    arrived = []
    results = run_jobs(
        lambda job: job * 2, {"b": 1, "a": 2}, on_result=lambda r: arrived.append(r.name)
    )
    assert [(r.name, r.value) for r in results] == [("b", 2), ("a", 4)]
    assert arrived == ["b", "a"]


def test_the_context_is_made_once() -> None:
    made = []
    results = run_jobs(lambda c, job: c + job, [1, 2], setup=lambda: made.append(1) or 5)
    assert [r.value for r in results] == [6, 7]
    assert made == [1]


def test_no_jobs_are_no_results() -> None:
    assert run_jobs(lambda job: job, [], workers=WorkerOptions(n_workers=2)) == []
