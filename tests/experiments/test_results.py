from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import cifar_resnet, ingredients, results

SPACE = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "epochs": 1,
    "batch_size": 20,
    "ema_decays": [0.5],
}


def start(data: Path) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return cifar_resnet.ResNet(8).state_dict()


def small_task(data: Path, *, device: str = "cpu") -> stockpot.ClassificationTask:
    return cifar_resnet.make_task(data, depth=8, n_train=40, n_held_out=40, device=device)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> ingredients.Sweep:
    """Three tiny runs."""
    data = standins.cifar_folder(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("made")
    small = ingredients.Experiment("small", 3, small_task, start, SPACE)
    sweep = ingredients.Sweep(small, 0, data, folder)
    ingredients.make_sweep(sweep)
    return sweep


@pytest.fixture(scope="module")
def found(sweep: ingredients.Sweep, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is reported of them."""
    return results.made(sweep, out=tmp_path_factory.mktemp("results"))


def test_the_table_has_every_model_on_every_split(found: dict[str, Any]) -> None:
    assert [row["model"] for row in found["rows"]] == [
        "base",
        "mean of singles",
        "best single",
        "uniform",
        "greedy",
        "WiSE-FT of best single, chosen",
        "WiSE-FT of best single, a = 0.5",
        "logit ensemble of all",
        "greedy logit ensemble",
    ]
    splits = {*(name for name, _ in found["splits"]), "shift_average"}
    assert all(set(row["scores"]) == splits for row in found["rows"])


def test_choices_are_made_on_held_out(found: dict[str, Any]) -> None:
    value = {row["model"]: row["scores"]["held-out"]["value"] for row in found["rows"]}
    runs = [run["scores"]["held-out"]["value"] for run in found["runs"]]
    assert value["best single"] == max(runs)
    assert value["greedy"] >= value["best single"]
    assert value["mean of singles"] == pytest.approx(sum(runs) / 3)


def test_differences_are_those_of_the_scores(found: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in found["rows"]}
    difference = (
        rows["uniform"]["scores"]["test"]["value"] - rows["best single"]["scores"]["test"]["value"]
    )
    assert rows["uniform"]["versus_best"]["difference"] == pytest.approx(difference)
    assert rows["best single"]["versus_best"] is None


def test_averages_along_the_runs_stand_beside_the_raw_weights(found: dict[str, Any]) -> None:
    assert [(row["kind"], row["runs"]) for row in found["averages"]] == [("raw", 3), ("ema-0.5", 3)]
    raw = found["averages"][0]
    greedy = next(row for row in found["rows"] if row["model"] == "greedy")
    assert raw["greedy"] == greedy["scores"]["test"]["value"]


def test_the_barrier_is_over_eleven_points_between_the_ends(found: dict[str, Any]) -> None:
    row = found["barriers"][0]
    assert len(found["barriers"]) == len(row["pair"]) * 3 / 2
    assert len(row["losses"]) == 11
    assert row["pair"] == ["run-00", "run-01"]
    line = [(1 - a) * row["losses"][0] + a * row["losses"][-1] for a in row["alphas"]]
    excess = [loss - on_line for loss, on_line in zip(row["losses"], line, strict=True)]
    assert row["height"] == pytest.approx(max(excess), abs=1e-12)


def test_what_was_found_is_not_made_again(
    sweep: ingredients.Sweep, found: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(results, "analyse", lambda sweep, **_: found)
    assert results.made(sweep, out=tmp_path) == found
    monkeypatch.delattr(results, "analyse")
    monkeypatch.delattr(results, "average_row")
    assert results.made(sweep, out=tmp_path) == found


def test_averages_that_an_earlier_call_left_out_are_added(
    sweep: ingredients.Sweep, found: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    raw = {**found, "averages": found["averages"][:1]}
    monkeypatch.setattr(results, "analyse", lambda sweep, **_: raw)
    assert results.made(sweep, out=tmp_path, averages=["swa"]) == raw
    assert results.made(sweep, out=tmp_path, averages=["ema-0.5"]) == found
    assert results.made(sweep, out=tmp_path, averages=[]) == found


def test_tables_hold_means_over_sweeps_and_gains_paired_by_sweep(found: dict[str, Any]) -> None:
    other = json.loads(json.dumps(found))
    values = {row["model"]: row["scores"]["test"] for row in other["rows"]}
    values["best single"]["value"] += 0.01
    values["uniform"]["value"] += 0.03
    text = results.markdown([found, {**other, "sweep": 1}])
    before = {row["model"]: row["scores"]["test"]["value"] for row in found["rows"]}
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| uniform")]
    splits = [*(name for name, _ in found["splits"]), "shift_average"]
    assert splits[:2] == ["held-out", "test"]
    assert f"{100 * before['uniform'] + 1.5:.2f} ±" in rows[0][2 + splits.index("test")]
    gain = 100 * (before["uniform"] - before["best single"]) + 1
    assert rows[1][1 + splits.index("test")].startswith(f"{gain:+.2f} [")
    assert "### small: 2 sweeps of 3 runs, accuracy" in text
    assert "| sweep 1 | run-0" in text
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| ema-0.5 |" in text


def test_of_one_sweep_there_is_no_interval(found: dict[str, Any]) -> None:
    text = results.markdown([found])
    assert "nan" not in text
    assert "±" not in text.split("interval:", 1)[1]


def test_metrics_that_are_no_means_are_not_compared_example_by_example(tmp_path: Path) -> None:
    data = standins.cifar_folder(tmp_path / "data")
    task = dataclasses.replace(small_task(data), metric="f1-macro", version="f1")
    evaluator = stockpot.TaskEvaluator(task, cache=None, device="cpu")
    models = stockpot.Ingredients([start(data), start(data)])
    mixture = stockpot.Mixture(models, stockpot.Coefficients.uniform(2))
    assert results._versus(evaluator, mixture, mixture) is None
