"""What two machines made of the same seeds, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import processors


def _seed(number: int, runs: list[float], soup: float) -> dict[str, Any]:
    return {
        "seed": number,
        "lines": [{"1.0": dict.fromkeys(processors.COLUMNS, value)} for value in runs],
        "numbers": [
            {"k": k, "soup": dict.fromkeys(processors.COLUMNS, soup if k == 2 else 0.0)}
            for k in (1, 2)
        ],
    }


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps([_seed(1, [0.5, 0.75], 0.75), _seed(2, [0.5, 0.5], 0.5)]))
    other.write_text(json.dumps([_seed(3, [1.0, 1.0], 1.0), _seed(1, [0.75, 0.5], 0.5)]))
    text = processors.main([str(one), str(other), "--out", str(tmp_path / "out")])
    (found,) = json.loads((tmp_path / "out" / "processors.json").read_text())
    assert found["seed"] == 1
    assert found["one run"]["test"] == [0.25, -0.25]
    assert found["mean of the runs"]["test"] == [0.0]
    assert found["soup of all"]["test"] == [-0.25]
    assert "| one run | 25.00 | 25.00 | 25.00 | 25.00 |" in text
    assert "| mean of the runs | 0.00 | 0.00 | 0.00 | 0.00 |" in text


def test_files_without_a_common_seed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps([_seed(1, [0.5], 0.5)]))
    other.write_text(json.dumps([_seed(2, [0.5], 0.5)]))
    with pytest.raises(SystemExit):
        processors.main([str(one), str(other), "--out", str(tmp_path)])
    assert "share no seed" in capsys.readouterr().err
