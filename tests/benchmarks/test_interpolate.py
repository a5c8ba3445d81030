"""The benchmark of curves on tiny data."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.experiments import standins

from benchmarks import interpolate
from experiments import cifar_resnet


@pytest.mark.parametrize("options", [[], ["--no-batchnorm"]])
def test_both_methods_evaluate_the_same_points(tmp_path: Path, options: list[str]) -> None:
    data = standins.cifar_folder(tmp_path / "data")
    (data / "resnet_cifar10").mkdir()
    save_file(cifar_resnet.ResNet(8).state_dict(), data / "resnet_cifar10" / "resnet8.safetensors")
    arguments = ["--data", str(data), "--folder", str(tmp_path / "made"), "--examples", "20"]
    arguments += ["--rounds", "1", "--steps", "1", *options]
    found = interpolate.main(arguments, depth=8, n_train=40, n_held_out=40)
    assert found["alphas"] == 21
    assert found["examples"] == {"held-out": 20, "test": 20}
    assert found["recalibration"] == (not options)
    assert found["rounds"][0]["wall_ratio"] == found["wall_ratio"] > 0
    assert found["rounds"][0]["cpu_ratio"] == found["cpu_ratio"] > 0
