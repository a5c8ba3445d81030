"""The demo, with a lab so small that it takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.experiments import standins

import stockpot
from stockpot import demo
from stockpot._figures import LineChart
from stockpot.errors import OutputExistsError
from stockpot.recipes.record import verify
from stockpot.report import load
from stockpot.tasks.handwriting import SHIFTS
from stockpot.tasks.handwriting.lab import Lab

BASE = replace(standins.TINY.base, epochs=2, score_every=2)
TINY = replace(standins.TINY, n_held_out=40, base=BASE, epochs=(1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def result(folder: Path) -> demo.DemoResult:
    return demo.run(folder, lab=TINY, n_workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")
    }


def test_every_model_has_a_score_with_an_interval_on_every_split(
    result: demo.DemoResult,
) -> None:
    models = {"base", "run-00", "run-01", "run-02", "auto", *demo.HEADLINE}
    assert set(result.scores) == models
    for found in result.scores.values():
        assert set(found) == {"held-out", "test", *SHIFTS, "shift_average"}
        for score in found.values():
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high


def test_the_average_over_shifts_leaves_out_what_the_base_was_trained_for(
    result: demo.DemoResult,
) -> None:
    for found in result.scores.values():
        values = [found[split].value for split in SHIFTS if split != "fonts"]
        assert found["shift_average"].value == pytest.approx(sum(values) / len(values))


def test_held_out_chooses(result: demo.DemoResult) -> None:
    held_out = {name: found["held-out"].value for name, found in result.scores.items()}
    runs = [value for name, value in held_out.items() if name.startswith("run-")]
    assert held_out["best-single"] == held_out[result.best] == max(runs)
    assert held_out["greedy"] >= held_out["best-single"]
    assert held_out["wise-ft"] >= max(held_out["best-single"], held_out["base"])


def test_the_ends_of_the_curve_are_the_base_and_the_best_run(result: demo.DemoResult) -> None:
    first, last = result.curve[0], result.curve[-1]
    assert (first["alpha"], last["alpha"], len(result.curve)) == (0, 1, 21)
    for split in ("held-out", "test", *SHIFTS):
        assert first["scores"][split]["value"] == result.scores["base"][split].value
        assert last["scores"][split]["value"] == result.scores["best-single"][split].value


def test_gains_are_paired_differences_to_the_best_single_run(result: demo.DemoResult) -> None:
    for name, found in result.gains.items():
        for split, gain in found.items():
            difference = (
                result.scores[name][split].value - result.scores["best-single"][split].value
            )
            assert gain.value == pytest.approx(difference, abs=1e-12)
            assert gain.low <= gain.value <= gain.high


def test_the_files_are_those_that_scripts_rely_on(result: demo.DemoResult, folder: Path) -> None:
    assert set(contents(folder)) == {
        "base.safetensors",
        *(f"runs/run-0{i}.safetensors" for i in range(3)),
        *(f"soups/{name}.safetensors" for name in ("uniform", "greedy", "wise-ft", "auto")),
    }
    assert set(result.soups) == {"uniform", "greedy", "wise-ft", "auto"}
    assert "<html" in Path(result.report).read_text()
    told = json.loads(json.dumps(result.to_json()))
    assert {"scores", "soups", "report", "seconds", "named", "headline"} <= set(told)
    assert set(told["scores"]["base"]["test"]) == {"value", "low", "high", "n", "metric"}


def test_the_page_and_the_result_begin_with_the_gain_of_the_recipe_named_beforehand(
    result: demo.DemoResult, folder: Path
) -> None:
    named = stockpot.Soup.load(result.soups[demo.NAMED])
    assert result.headline == named.headline
    assert load(folder).verdict[0].startswith(result.headline)


def test_every_soup_is_what_its_record_says(result: demo.DemoResult) -> None:
    for path in result.soups.values():
        assert verify(path) == []


def test_runs_share_the_base_and_differ_from_each_other(
    result: demo.DemoResult, folder: Path
) -> None:
    files = [folder / "base.safetensors", *sorted((folder / "runs").glob("run-*.safetensors"))]
    assert len({stockpot.open(file).fingerprint for file in files}) == 4
    stockpot.Ingredients([str(file) for file in files[1:]], base=str(files[0]))


def test_the_record_holds_what_the_page_shows(result: demo.DemoResult, folder: Path) -> None:
    report = load(folder)
    assert set(demo.HEADLINE) <= {model.name for model in report.models}
    assert report.reported_on[0] == "test"
    assert set(report.reported_on) == {"test", *SHIFTS}
    assert set(report.shifts) == set(SHIFTS) - {"fonts"}
    assert "path" in [figure.name for figure in report.figures]
    assert report.chosen_on == "held-out"
    assert "held-out" not in report.reported_on
    curve = next(figure for figure in report.figures if figure.name == "interpolation")
    assert isinstance(curve, LineChart)
    assert curve.rules[0].value == result.alpha
    shares = report.model("greedy").coefficients
    assert sorted(shares) == sorted(result.kept)
    assert sum(shares.values()) == pytest.approx(1)
    assert report.model("run-00").hyperparameters["lr"] > 0


def test_a_finished_demo_is_reported_again_without_training(
    result: demo.DemoResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("stockpot.tasks.handwriting.lab.fine_tune", refuse)
    monkeypatch.setattr("stockpot.train.sweep.run.fine_tune", refuse)
    before = contents(folder)
    again = demo.run(folder, lab=TINY, n_workers=1)
    assert again.scores == result.scores
    assert contents(folder) == before


def test_another_demo_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    small = replace(TINY, n_runs=1, epochs=(1, 1))
    first = demo.run(tmp_path / "out", lab=small, n_workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="other settings"):
        demo.run(tmp_path / "out", lab=small, seed=1, n_workers=1)
    assert contents(tmp_path / "out") == before
    keepsake = tmp_path / "out" / "notes.txt"
    keepsake.write_text("mine")
    second = demo.run(tmp_path / "out", lab=small, seed=1, force=True, n_workers=1)
    assert second.scores != first.scores
    assert contents(tmp_path / "out").keys() == before.keys()
    assert keepsake.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="is not a demo"):
        demo.run(tmp_path, lab=TINY, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_killed_demo_goes_on_to_the_same_checkpoints(
    result: demo.DemoResult, folder: Path, tmp_path: Path
) -> None:
    code = "import sys; from tests.test_demo import start; start(sys.argv[1])"
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
    )
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "out" / "runs" / "run-00.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = demo.run(tmp_path / "out", lab=TINY, n_workers=1)
    assert contents(tmp_path / "out") == contents(folder)
    assert {n: s["test"].value for n, s in again.scores.items()} == {
        n: s["test"].value for n, s in result.scores.items()
    }


def start(out: str, lab: Lab = TINY) -> None:
    """What the killed process runs."""
    demo.run(out, lab=lab, n_workers=1)
