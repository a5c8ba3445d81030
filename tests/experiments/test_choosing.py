from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import choosing, cifar_resnet, ingredients

SPACE = {
    "optimizer": "adamw",
    "lr": {"log_uniform": [1e-3, 1e-1]},
    "epochs": 2,
    "batch_size": 20,
}


def start(data: Path) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return cifar_resnet.ResNet(8).state_dict()


def small_task(data: Path, *, device: str = "cpu") -> stockpot.ClassificationTask:
    return cifar_resnet.make_task(data, depth=8, n_train=40, n_held_out=150, device=device)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep of three tiny runs, tried in two random orders."""
    data = standins.cifar_folder(tmp_path_factory.mktemp("data"), n_test=200)
    folder, out = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("out")
    small = ingredients.Experiment("small", 3, small_task, start, SPACE)
    sweep = ingredients.Sweep(small, 0, data, folder)
    ingredients.make_sweep(sweep)
    choosing.run([sweep], n_orders=2, out=out)
    first = choosing.collected(out)
    sizes = choosing.Sizes(held_out=100, calibration=20)
    choosing.run(
        [sweep], n_orders=0, out=out / "small", with_tables=False, sizes=sizes, plain=False
    )
    assert choosing.collected(out / "small")["races"][0]["n"] == 100
    assert choosing.collected(out / "small")["races"][0]["early"]["calibration"] == 40
    choosing.run([sweep], n_orders=2, out=out)  # finds everything there
    assert choosing.collected(out) == first
    return json.loads(json.dumps(first))


def test_every_way_to_choose_is_scored_on_every_split(found: dict[str, Any]) -> None:
    for one in found["tables"]:
        names = [row["model"] for row in one["rows"]]
        assert names == [
            "best single", "uniform", "greedy", "pruned", "ensemble of all", "greedy ensemble",
        ]  # fmt: skip
        splits = {*one["splits"], "shift_average"}
        assert all(set(row["scores"]) == splits for row in one["rows"])
        best, greedy = one["rows"][0], one["rows"][2]
        values = [row["scores"]["held-out"]["value"] for row in (best, greedy)]
        assert values[1] >= values[0]
        assert best["p_values"]["test"] == 1


def test_both_loops_start_from_nothing_but_the_single_models(found: dict[str, Any]) -> None:
    assert {race["order"] for race in found["races"]} == {"score", "0", "1"}
    for race in found["races"]:
        assert race["same"]
        assert race["decided_alike"]
        assert race["plain"]["examples"] == race["n"] * 2
        # The rest is the effect of BatchNorm statistics, which the record of a soup names.
        assert race["plain"]["forward_passes"] - race["n"] * 2 in (0, race["n"], race["n"] * 2)
        assert race["early"]["forward_passes"] >= race["early"]["examples"]


def decide(steps: list[tuple[float | None, int]], *, n: int = 100, k: int = 3) -> dict[str, Any]:
    """A race of steps (score, examples) in which a score means acceptance."""
    return {
        "n": n,
        "k": k,
        "same": True,
        "decided_alike": True,
        "plain": {},
        "early": {
            "steps": [{"accepted": s is not None, "score": s, "examples": e} for s, e in steps],
            "examples": sum(e for _, e in steps),
            "calibration": 500,
        },
    }


def test_costs_are_counted_against_the_errors_of_the_soup_of_the_moment() -> None:
    found = choosing.costs([decide([(0.9, 0), (0.95, 100), (None, 30)])])
    assert (found.rejected, found.mean_cost, found.mean_least) == (1, 30, 6)
    assert found.goal == pytest.approx(1.2 * 6 + 64)
    assert found.share == pytest.approx(130 / 200)
    assert found.floor == pytest.approx(106 / 200)


def test_the_tables_can_be_written(found: dict[str, Any]) -> None:
    text = choosing.markdown(found)
    assert "greedy, random order" in text
    for line in ("| score | 1 of 1 |", "| random | 2 of 2 |"):
        assert line in text
