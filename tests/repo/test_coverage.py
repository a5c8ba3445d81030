"""What coverage leaves out is named, and is there."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import UNMEASURED

TESTS = Path(__file__).parents[1]


def test_what_is_not_measured_is_there() -> None:
    assert [place for place in UNMEASURED if not (TESTS / place).exists()] == []
