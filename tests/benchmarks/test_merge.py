"""The benchmark of merging, without mergekit: its configurations, and a run of what is ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import merge
from stockpot.recipes.merge import Merge


@pytest.mark.parametrize("method", [m for m in merge.METHODS if m != "ties-model"])
def test_its_configurations_are_merges(method: str) -> None:
    paths = [Path("/base"), Path("/a"), Path("/b")]
    config = json.loads(json.dumps(merge.config_of(method, paths)))
    parsed = Merge(config=config).parsed
    assert parsed.merge_method == method
    assert len(parsed.models) == {"linear": 3, "slerp": 1}.get(method, 2)


def test_it_measures_a_process_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--mergekit", "none", "--size", "1MB", "--repeat", "1", "--data", str(tmp_path)]
    merge.main([*given, "--methods", "ties-model"])
    *_, row = capsys.readouterr().out.strip().splitlines()
    assert row.startswith("| ties-model | stockpot |")
