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

CONFIG = {"optimizer": "adamw", "lr": 2e-3, "epochs": 1, "batch_size": 20, "ema_decays": (0.5,)}


def start(data: Path, run: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return cifar_resnet.ResNet(8).state_dict()


def small_task(data: Path) -> stockpot.ClassificationTask:
    return cifar_resnet.make_task(data, depth=8, n_train=40, n_held_out=40)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three tiny runs and what is reported of them."""
    data = standins.cifar_folder(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("made")
    small = ingredients.Experiment("small", 3, small_task, start, lambda rng: CONFIG)
    for run in range(3):
        ingredients.make_run(small, data, folder, run)
    return results.analyse(
        "small", small_task(data), folder, cache=folder / "cache", barriers=2, averages=True
    )


def test_the_table_has_every_model_on_every_split(found: dict[str, Any]) -> None:
    assert [row["model"] for row in found["rows"]] == [
        "base",
        "mean of singles",
        "best single",
        "uniform",
        "greedy",
        "WiSE-FT of best single, chosen",
        "WiSE-FT of best single, a = 0.5",
        "WiSE-FT of greedy, chosen",
        "WiSE-FT of greedy, a = 0.5",
        "logit ensemble of all",
        "greedy logit ensemble",
    ]
    splits = {*found["splits"], "shift_average"}
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
    assert raw["greedy"]["value"] == greedy["scores"]["test"]["value"]


def test_the_barrier_is_over_eleven_points_between_the_ends(found: dict[str, Any]) -> None:
    (row,) = found["barriers"]
    assert len(row["losses"]) == 11
    assert row["pair"] == ["run-00", "run-01"]
    line = [(1 - a) * row["losses"][0] + a * row["losses"][-1] for a in row["alphas"]]
    excess = [loss - on_line for loss, on_line in zip(row["losses"], line, strict=True)]
    assert row["height"] == pytest.approx(max(excess), abs=1e-12)


def test_everything_can_be_written(found: dict[str, Any]) -> None:
    text = results.markdown(json.loads(json.dumps(found)))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {line.count("|") for line in rows[: len(found["rows"]) + 1]}
    assert len(widths) == 1
    assert "| greedy |" in text
    assert "run-00 – run-01" in text


def test_a_score_without_an_interval_is_shown_without_one() -> None:
    score = {"value": 0.5, "low": None, "high": None}
    assert results._cell(score) == "0.500"
    assert results._cell({**score, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert results._cell(None) == "–"


def test_metrics_that_are_no_means_are_not_compared_example_by_example(tmp_path: Path) -> None:
    data = standins.cifar_folder(tmp_path / "data")
    task = dataclasses.replace(small_task(data), metric="f1-macro", version="f1")
    evaluator = stockpot.Evaluator(task, cache=None, device="cpu")
    models = stockpot.Ingredients([start(data, 0), start(data, 1)])
    mixture = stockpot.Mixture(models, stockpot.Coefficients.uniform(2))
    assert results._versus(evaluator, mixture, mixture) is None
