from __future__ import annotations

import pytest

from stockpot.errors import WorkerError
from stockpot.workers.jobs import call_job, raise_failures


def fail() -> None:
    raise ValueError("not this way")


def test_a_failure_is_a_result_with_its_traceback() -> None:
    result = call_job("a", fail)
    assert result.value is None
    assert result.error is not None
    assert "in fail" in result.error.traceback


def test_an_interrupt_is_no_result() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_job("a", interrupted)


def test_all_failures_are_raised_at_once() -> None:
    results = [call_job("a", fail), call_job("b", lambda: 1), call_job("c", fail)]
    with pytest.raises(WorkerError, match="2 jobs failed") as caught:
        raise_failures(results)
    assert caught.value.jobs == ("a", "c")
    raise_failures(results[1:2])
