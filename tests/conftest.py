"""Tests that coverage does not count, since passing through code is no check of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

UNMEASURED = (
    "benchmarks",
    "experiments",
    "formats/test_fuzz.py",
    "report/test_hostile_records.py",
    "report/test_real_pages.py",
    "repo/test_docs.py",
    "repo/test_docs_in_browser.py",
    "test_cost.py",
)
"""Experiments, pages, harmful files, memory: each runs through much and looks at the end alone."""


@pytest.fixture(autouse=True, scope="module")
def unmeasured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs such a module untraced, in this process and in those that it starts.

    Coverage should not rest on them, and traced they take half as long again.
    """
    place = request.path.relative_to(Path(__file__).parent)
    coverage = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    if measuring is None or not any(place.is_relative_to(one) for one in UNMEASURED):
        yield
        return
    inherited = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    measuring.stop()
    yield
    measuring.start()
    if inherited is not None:
        os.environ["COVERAGE_PROCESS_CONFIG"] = inherited
