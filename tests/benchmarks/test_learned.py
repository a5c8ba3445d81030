"""The learned-soup benchmark on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.learned import agreement, main


def test_both_methods_measure_the_same_gradient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--k 3 --small --one-model --rounds 1 --steps 2 --threads 1 --examples 8 --remove"
    (row,) = main([*arguments.split(), "--data", str(tmp_path / "data")])
    streamed, in_memory = row["streamed"], row["in_memory"]
    assert row["one_model"]["seconds"] > 0
    # The reference is the less exact of the two: it does not centre.
    error = np.subtract(streamed["gradient"], in_memory["gradient"])
    assert np.linalg.norm(error) < 1e-2 * np.linalg.norm(in_memory["gradient"])
    assert streamed["peak_bytes"] > 50 * 2**20
    assert streamed["parts"]["steps"] == 1  # the first is left out
    assert streamed["seconds"] >= streamed["parts"]["inner_products"] > 0
    assert "| 3 | streamed |" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_streamed_gradients_agree_with_autograd_through_all_ingredients() -> None:
    for errors in agreement("cpu").values():
        assert errors["float32"] < 1e-5
        assert errors["float64"] < 1e-10
