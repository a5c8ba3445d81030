"""The benchmarks of buckets, on a few megabytes: their answers, not their figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import remote

MB = 1_000_000
pytest.importorskip("obstore", reason="needs the extra s3")
pytestmark = [pytest.mark.extras, pytest.mark.slow]


def test_copies_and_averages_of_a_bucket_are_compared(tmp_path: Path) -> None:
    found = remote.rates(tmp_path, models=2, n_bytes=4 * MB, repeat=1)
    assert found["equal"]
    assert found["ratio_median"] > 0


def test_three_nodes_make_the_bytes_of_one_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    found = remote.nodes(tmp_path, models=2, n_bytes=6 * MB, rate=6 * MB)
    assert found["equal"] == {"one": True, "three": True, "killed": True}
    assert not found["visible_after_kill"]
    assert found["files"] >= 3
