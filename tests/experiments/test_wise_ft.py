from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import cifar_resnet, ingredients, wise_ft
from stockpot.analysis.robustness import fit_baseline
from stockpot.tasks.handwriting.lab import QUICK

TINY = dataclasses.replace(
    QUICK, n_train=60, n_held_out=60, n_test=60, n_fonts=30, n_base=200, n_runs=2, epochs=(1, 1),
    base=dataclasses.replace(QUICK.base, epochs=1, score_every=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    out = tmp_path_factory.mktemp("wise-ft")
    networks = [(8, 1), (8, 2), (8, 3), (16, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wise_ft, "BASELINES", [n for n in networks for _ in range(3)])
        text = wise_ft.main(
            ["--out", str(out), "--only", "handwriting", "--quick"], lab=TINY
        )  # fmt: skip
    (found,) = json.loads((out / "wise_ft.json").read_text())
    return found, text, out


def test_every_row_is_that_of_the_curve(told: tuple[dict[str, Any], str, Path]) -> None:
    found, *_ = told
    rows = wise_ft._rows("best single")
    curve = found["tuned"]["best single"]["curve"]
    assert rows["zero-shot"](found)("test") == curve[0]["scores"]["test"]["value"]
    assert rows["fine-tuned"](found)("fonts") == curve[-1]["scores"]["fonts"]["value"]
    values = [p["scores"]["shift_average"]["value"] for p in curve]
    assert rows["best α of each column"](found)("shift_average") == max(values)
    assert [p["alpha"] for p in curve] == [0, 0.25, 0.5, 0.75, 1]


def test_robustness_is_measured_over_networks_that_saw_the_reference_only(
    told: tuple[dict[str, Any], str, Path],
) -> None:
    found = told[0]["robustness"]
    assert len(found["baselines"]) == 4
    fit = fit_baseline(*([b[key] for b in found["baselines"]] for key in ("test", "shift")))
    tuned = found["models"]["fine-tuned"]
    assert tuned["rho"] == pytest.approx(fit.effective_robustness(tuned["test"], tuned["shift"]))


def test_the_tables_name_every_column_and_say_what_is_looked_up(
    told: tuple[dict[str, Any], str, Path],
) -> None:
    text = told[1]
    assert "|  | held-out | test | shift average | noise |" in text
    for words in ("Effective robustness", "looked up there", "Fisher-weighted", "by layer"):
        assert words in text


def test_what_was_found_is_not_made_again(told: tuple[dict[str, Any], str, Path]) -> None:
    *_, text, out = told
    file = out / "handwriting" / "seed-0.json"
    before = file.stat().st_mtime_ns
    assert wise_ft.main(["--out", str(out), "--only", "handwriting", "--quick"], lab=TINY) == text
    assert file.stat().st_mtime_ns == before


def test_sweeps_of_the_reference_tasks_are_read_where_they_were_made(tmp_path: Path) -> None:
    data = standins.cifar_folder(tmp_path / "data")

    def small_task(data: Path, *, device: str = "cpu") -> stockpot.ClassificationTask:
        return cifar_resnet.make_task(data, depth=8, n_train=40, n_held_out=40, device=device)

    def start(data: Path) -> dict[str, torch.Tensor]:
        return cifar_resnet.ResNet(8).state_dict()

    space = {"optimizer": "sgd", "lr": 1e-2, "epochs": 1}
    small = ingredients.Experiment("resnet", 2, small_task, start, space)
    sweep = ingredients.Sweep(small, 0, data, tmp_path / "made")
    ingredients.make_sweep(sweep)
    job = wise_ft.Job("resnet", 0, tmp_path / "out", sweep, quick=True)
    found = wise_ft.made(job)
    assert [name for name, _ in found["splits"]][:2] == ["held-out", "test"]
    assert "natural" in wise_ft.markdown([found])

    alone = wise_ft.Job("resnet", 1, tmp_path / "out", sweep, alphas=(0.5,), best_only=True)
    best = wise_ft.made(alone)["tuned"]
    assert list(best) == ["best single"]
    assert [point["alpha"] for point in best["best single"]["curve"]] == [0, 0.5, 1]
    expected = found["tuned"]["best single"]["curve"][-1]["scores"]["held-out"]
    assert best["best single"]["curve"][-1]["scores"]["held-out"] == expected


def test_sweeps_that_were_not_made_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    text = wise_ft.main(["--data", str(tmp_path), "--out", out, "--only", "resnet"])
    assert text == ""
    assert "no runs in" in capsys.readouterr().err
