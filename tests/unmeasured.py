"""Tests that coverage does not count, since passing through code is no check of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    """Runs a module without tracing, in this process and in those that it starts.

    Experiments and benchmarks run through most of the package and look at the end alone. They are
    not what its coverage should rest on, and traced they take half as long again.
    """
    coverage = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    if measuring is None:
        yield
        return
    inherited = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    measuring.stop()
    yield
    measuring.start()
    if inherited is not None:
        os.environ["COVERAGE_PROCESS_CONFIG"] = inherited
