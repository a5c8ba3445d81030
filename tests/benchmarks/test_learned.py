"""The learned-soup benchmark on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.learned import main


def test_both_methods_measure_the_same_gradient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--k 3 --small --rounds 1 --steps 2 --threads 1 --examples 8 --remove"
    (row,) = main([*arguments.split(), "--data", str(tmp_path / "data")])
    streamed, in_memory = row["streamed"], row["in_memory"]
    # The reference is the less exact of the two: it does not centre.
    error = np.subtract(streamed["gradient"], in_memory["gradient"])
    assert np.linalg.norm(error) < 1e-2 * np.linalg.norm(in_memory["gradient"])
    assert streamed["peak_bytes"] > 50 * 2**20
    assert streamed["parts"]["steps"] == 2
    assert "| 3 | streamed |" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()
