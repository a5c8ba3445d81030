"""The experiment in its small case: three short runs, and two networks of different starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.experiments.standins import TINY

from experiments import diagnostics
from stockpot.demo import run


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    run(folder / "seed-0", lab=TINY, n_workers=1)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "digits").mkdir()
    (folder / "mnist_cnn_endpoints").mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (50, 28, 28), np.uint8)
    np.savez(
        folder / "digits" / "mnist.npz",
        test_images=images,
        test_labels=rng.integers(0, 10, 50).astype(np.uint8),
    )
    for n in (1, 2):
        torch.manual_seed(n)
        save_file(
            diagnostics.mnist_network().state_dict(),
            folder / "mnist_cnn_endpoints" / f"edpt{n}_epoch200.safetensors",
        )
    return folder


def test_the_small_case_gives_every_table_and_all_numbers(demos, data, tmp_path) -> None:
    arguments = ["--demos", str(demos), "--data", str(data), "--seeds", "0"]
    text = diagnostics.main([*arguments, "--out", str(tmp_path), "--pages"], lab=TINY)
    for title in ("Landscape", "Angle and advantage", "Soup minus ensemble", "Barriers",
                  "Calibration"):  # fmt: skip
        assert f"### {title}" in text
    assert (tmp_path / "seed-0" / "report.html").exists()
    told = json.loads((tmp_path / "diagnostics.json").read_text())
    (found,) = told["seeds"].values()
    assert len(found["gaps"]) == 3 * len(diagnostics.ALPHAS)
    marks = found["diagnosis"]["landscape"]["marks"]
    assert f"{marks[3]['loss']:.3f}, {100 * marks[3]['score']:.1f}" in text
    (scratch,) = told["scratch"]
    assert f"| {scratch['barrier']:.4f} | 11 |" in text
    again = diagnostics.main([*arguments, "--out", str(tmp_path)], lab=TINY)
    assert again == text


def test_a_pair_is_moderate_when_both_rates_are_in_the_lower_half(demos, tmp_path) -> None:
    study = diagnostics.study_seed(0, TINY, demos / "seed-0", cache=tmp_path)
    middle = 10**-2.7
    for gap in study.gaps:
        assert gap.moderate is all(study.rates[i] <= middle for i in gap.runs)
