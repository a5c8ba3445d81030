from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.average import benchmark, ratios, to_markdown, value_errors
from benchmarks.llama import llama_shapes, make_models

import stockpot


def test_a_small_case_runs_measures_and_leaves_nothing(tmp_path: Path) -> None:
    report = benchmark(
        tmp_path,
        models=2,
        n_bytes=2_000_000,
        repeat=1,
        cold=1,
        mergekit=None,
        contenders=("floor", "stockpot"),
        say=lambda text: None,
    )
    assert list(tmp_path.iterdir()) == []
    assert [(run.contender, run.cold) for run in report.runs] == [
        ("floor", False), ("stockpot", False), ("floor", True), ("stockpot", True),
    ]  # fmt: skip
    ours = report.runs[1]
    assert ours.seconds is not None
    assert 0 < ours.seconds < ours.wall
    assert ours.import_seconds is not None
    assert 5e6 < ours.peak_anonymous < 600e6
    assert report.errors["stockpot"]["wrong_share"] == 0
    assert report.errors["stockpot"]["values"] > 900_000
    assert report.capped == {"floor": "finishes", "stockpot": "finishes"}
    text = to_markdown(report)
    assert "| stockpot | warm |" in text
    assert "| floor, fsync | cold |" in text
    assert ratios(report, "mergekit", "stockpot") == []


def test_models_are_of_the_size_asked_for_and_close_to_each_other(tmp_path: Path) -> None:
    one, two = make_models(tmp_path, 2, 3_000_000, moved=0.01)
    a, b = stockpot.open(one), stockpot.open(two)
    assert abs(a.n_bytes - 3_000_000) < 500_000
    assert set(a) == set(llama_shapes(3_000_000))
    name = "model.layers.0.mlp.up_proj.weight"
    x, y = (c.read(name).double().numpy() for c in (a, b))
    assert 0 < np.linalg.norm(x - y) / np.linalg.norm(x) < 0.03


@pytest.mark.parametrize("off_by", [0, 1, 3])
def test_the_judge_counts_units_in_the_last_place(tmp_path: Path, off_by: int) -> None:
    inputs = make_models(tmp_path, 2, 1_000_000, moved=0.01)
    stockpot.Mixture(stockpot.Ingredients(inputs)).save(tmp_path / "soup.safetensors")
    written = stockpot.open(tmp_path / "soup.safetensors")
    file = bytearray((tmp_path / "soup.safetensors").read_bytes())
    # The last value of the file belongs to the last tensor by name, a norm.
    last = int.from_bytes(file[-2:], "little") + off_by
    file[-2:] = last.to_bytes(2, "little")
    (tmp_path / "soup.safetensors").write_bytes(file)
    found = value_errors(tmp_path / "soup.safetensors", inputs, n_values=10**9)
    assert found["values"] == written.n_parameters
    assert found["worst_ulps"] == off_by
    assert found["wrong_share"] == (off_by > 0) / written.n_parameters
