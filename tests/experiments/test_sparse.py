"""The experiment on sparse soups, in a few steps on stand-in data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments.standins import cifar_folder

import stockpot
from experiments import cifar_resnet, policies, sparse, sparse_study, sparse_tables
from stockpot.evaluate.compare import Predictions


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    data = cifar_folder(folder / "data", n_train=60, n_test=100)
    patch = pytest.MonkeyPatch()
    patch.setattr(cifar_resnet, "N_CALIBRATION", 40)
    patch.setenv("LOKY_MAX_CPU_COUNT", "1")
    torch.manual_seed(0)  # of the small base
    arguments = ["resnet", "--quick", "--data", str(data), "--out", str(folder), "--jobs", "1"]
    text = sparse.main(arguments)
    patch.setattr(sparse, "work", None)
    assert sparse.main([*arguments, "--tables"]) == text
    patch.undo()
    return folder


def test_a_smaller_case_trains_and_scores_on_no_more_than_it_says(tmp_path: Path) -> None:
    data = cifar_folder(tmp_path, n_train=60, n_test=100)
    patch = pytest.MonkeyPatch()
    patch.setattr(cifar_resnet, "N_CALIBRATION", 40)
    patch.setattr(cifar_resnet, "N_HELD_OUT", 40)
    task = sparse_study.Lab(sparse_study.RESNET, tmp_path, data, n_train=20, n_scored=10).task(0)
    patch.undo()
    assert len(task.train_set) == 20
    assert max(len(split.dataset) for split in task.splits.values()) == 10


def test_every_model_of_the_table_is_there_at_every_phase(out: Path) -> None:
    told = json.loads((out / "resnet.json").read_text())
    models = {
        "dense", "soup, uniform", "soup, greedy", "best candidate", "mean candidate",
        "ensemble of candidates", "IMP", "IMP, 3× the epochs", "IMP-RePrune",
    }  # fmt: skip
    assert set(told["measures"]) == {"averaged", "recalibrated", "clean"}
    phases = {str(round(s, 6)) for s in (1 - 0.02**0.5, 0.98)}
    for by_model in told["measures"].values():
        assert set(by_model) == models
        for by_phase in by_model.values():
            assert set(by_phase) == phases
            for by_seed in by_phase.values():
                assert set(sparse_tables.METRICS) <= set(by_seed["0"])
    text = (out / "resnet.md").read_text()
    assert text.count("| IMP-RePrune |") == 3 * len(sparse_tables.METRICS)
    assert "| soup, uniform − IMP |" in text


def test_all_models_of_a_table_have_the_policy_that_it_names(out: Path) -> None:
    """Each value is that of a separate evaluator, with the policy asked for from the start."""
    told = json.loads((out / "resnet.json").read_text())["measures"]
    lab = sparse_study.Lab(sparse_study.quickly(sparse_study.RESNET), out, out / "data", quick=True)
    patch = pytest.MonkeyPatch()
    patch.setattr(cifar_resnet, "N_CALIBRATION", 40)
    task = lab.judge(0).task
    patch.undo()
    dense = stockpot.open(out / "resnet" / "seed-0" / "dense.safetensors")
    place = out / "resnet" / "seed-0" / "0.98-uniform" / "phase-2"
    candidates = [stockpot.open(place / f"candidate-{i}.safetensors") for i in range(3)]
    for policy, by_model in told.items():
        evaluator = stockpot.TaskEvaluator(
            task, device="cpu", batchnorm=policy, precision=lab.study.train.precision
        )
        own = evaluator.scores(dense)["shift_average"].value
        assert by_model["dense"]["0.98"]["0"]["shift_average"] == pytest.approx(own)
        mean = np.mean([evaluator.scores(model)["test"].value for model in candidates])
        assert by_model["mean candidate"]["0.98"]["0"]["test"] == pytest.approx(mean)


def test_the_policies_are_compared_on_the_same_weights(out: Path) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(cifar_resnet, "N_CALIBRATION", 40)
    text = policies.main(["--quick", "--data", str(out / "data"), "--out", str(out)])
    patch.undo()
    told = json.loads((out / "policies.json").read_text())
    measured = json.loads((out / "resnet.json").read_text())["measures"]
    for policy in ("averaged", "recalibrated", "clean"):
        dense = measured[policy]["dense"]["0.98"]["0"]
        assert told["line"][policy]["1.0"]["natural"] == pytest.approx(dense["natural"])
        mean = measured[policy]["mean candidate"]["0.98"]["0"]
        assert told["phases"][policy]["2"]["mean candidate"]["test"] == pytest.approx(mean["test"])
    assert "| clean − averaged | soup − candidate |" in text


def test_the_measured_files_are_as_sparse_as_the_table_says(out: Path) -> None:
    names = sparse.prunable_names(cifar_resnet.ResNet(8))
    place = out / "resnet" / "seed-0"
    for kind in ("uniform", "imp-1", "imp-long"):
        for phase, sparsity in ((1, 1 - 0.02**0.5), (2, 0.98)):
            model = stockpot.open(place / f"0.98-{kind}" / f"phase-{phase}" / "soup.safetensors")
            zeros = sum(int((model.read(name) == 0).sum()) for name in names)
            assert zeros == round(sparsity * sum(model[name].numel for name in names))


def test_calibration_and_the_worst_class_are_of_the_test_split() -> None:
    outputs = np.array([[4.0, 0], [4, 0], [4, 0], [0, 4]], np.float32)
    targets = torch.tensor([0, 0, 1, 1])
    found = {"test": Predictions(outputs, targets, np.array([1.0, 1, 0, 1]))}

    class Judge:
        def scores_of(self, given):
            assert given is found
            return {}

    told = sparse.measure_outputs(Judge(), found)  # type: ignore[arg-type]
    assert told["worst_class"] == 0.5
    assert told["ece"] == pytest.approx(1 / (1 + np.exp(-4)) - 0.75, abs=1e-6)


def test_differences_are_paired_by_seed_and_marked_when_within_noise() -> None:
    assert sparse_tables._difference([0.01, 0.01, 0.01]) == "+1.00 ± 0.00"
    assert sparse_tables._difference([0.05, -0.05, 0.0]).endswith("(n)")
    assert sparse_tables._difference([0.02]) == "+2.00"
    assert sparse_tables._cell([]) == "-"


def test_costs_count_every_epoch_of_every_candidate() -> None:
    price = sparse_tables.costs(sparse_study.HANDWRITING)
    assert price["IMP"] == (15, 1)
    assert price["soup, uniform"] == price["IMP, 3× the epochs"] == (45, 1)
    assert price["ensemble of candidates"] == (45, 3)
    assert price["GMP with soup"] == (24 - 5 + 3 * 5, 1)
    assert price["BIMP with soup"] == (24 - 15 + 3 * 15, 1)
