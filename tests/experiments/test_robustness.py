"""Networks that saw JPEG images only, and curves held against their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from tests.experiments import standins

from experiments import cifar_resnet, robustness

BASELINES = [
    {"name": "a", "test": 0.5, "shift": 0.4},
    {"name": "b", "test": 0.7, "shift": 0.55},
    {"name": "c", "test": 0.8, "shift": 0.66},
    {"name": "d", "test": 0.9, "shift": 0.8},
]


def point(alpha: float, test: float, shift: float) -> dict[str, Any]:
    return {"alpha": alpha, "scores": {"test": {"value": test}, "shift_average": {"value": shift}}}


TOLD = {
    "curve": [point(0.0, 0.6, 0.7), point(0.5, 0.8, 0.75), point(1.0, 0.85, 0.7)],
    "half": point(0.5, 0.8, 0.75),
    "chosen": point(1.0, 0.85, 0.7),
    "ensemble": [point(0.5, 0.95, 0.8)],
}


def test_points_are_held_against_the_line_of_the_baselines() -> None:
    found = robustness.above(BASELINES, TOLD)
    x, y = ([b[key] for b in BASELINES] for key in ("test", "shift"))
    slope, intercept = np.polyfit(logit(x), logit(y), 1)
    expected = 0.75 - expit(slope * logit(0.8) + intercept)
    assert found["models"]["α = 0.5"]["rho"] == pytest.approx(expected)
    assert found["models"]["chosen α"] == found["models"]["fine-tuned"]
    assert [name for name, one in found["models"].items() if not one["inside"]] == [
        "ensemble, α = 0.5"
    ]
    assert found["curve"][0]["rho"] == found["models"]["zero-shot"]["rho"]


def test_sweeps_with_one_set_of_baselines_have_one_fit() -> None:
    one = {"robustness": robustness.above(BASELINES, TOLD)}
    other = {"robustness": robustness.above(BASELINES[::-1], TOLD)}
    shared = robustness.lines([{"seed": 3, **one}, {"seed": 4, **one}], "x")
    assert sum(line.startswith("| all sweeps |") for line in shared) == 1
    assert sum(line.startswith("| c |") for line in shared) == 1
    apart = robustness.lines([{"seed": 3, **one}, {"seed": 4, **other}], "x")
    assert [line.split(" |")[0] for line in apart if line.startswith("| seed")] == [
        "| seed 3",
        "| seed 4",
    ]


def test_a_width_changes_the_channels_and_the_published_one_stays() -> None:
    published, wide = cifar_resnet.ResNet(8), cifar_resnet.ResNet(8, width=4)
    assert published.layer3[0].conv1.weight.shape == (64, 32, 3, 3)
    assert wide.layer3[0].conv1.weight.shape == (16, 8, 3, 3)
    assert wide(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_all_of_it_in_a_few_steps_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    data = standins.cifar_folder(tmp_path / "data", n_train=120)
    standins.resnet_folder(tmp_path / "data", robustness.PUBLISHED)
    curves = tmp_path / "wise_ft.json"
    tuned = {"best single": TOLD}
    curves.write_text(
        json.dumps(
            [{"experiment": "resnet, averaged", "seed": seed, "tuned": tuned} for seed in (0, 1)]
        )
    )
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--curves", str(curves), "--out", str(out), "--quick"]
    text = robustness.main(arguments)
    assert "| ResNet-8, width 16, 2 epochs |" in text
    assert "| ResNet-56, originals |" in text
    trained = sorted((out / "baselines").glob("*.safetensors"))
    assert len(trained) == 4
    times = [path.stat().st_mtime_ns for path in trained]
    assert robustness.main(arguments) == text
    assert [path.stat().st_mtime_ns for path in trained] == times


def test_curves_of_other_tasks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = tmp_path / "wise_ft.json"
    curves.write_text(json.dumps([{"experiment": "handwriting", "seed": 0}]))
    for given in (curves, tmp_path / "absent.json"):
        with pytest.raises(SystemExit):
            robustness.main(["--data", "x", "--curves", str(given), "--out", str(tmp_path / "out")])
        assert "holds no curve of resnet" in capsys.readouterr().err
