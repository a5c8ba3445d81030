"""`stockpot sweep`: one call of `run_sweep`, shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.train.tasks import start_weights

SPACE = {"lr": {"log_uniform": [1e-3, 1e-2]}, "epochs": 1}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "task.py").write_text(
        "from tests.train.tasks import TinyTask\ndef task(): return TinyTask()\n"
    )
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    save_file(start_weights(), tmp_path / "base.safetensors")
    return {
        "--task": f"{tmp_path / 'task.py'}:task",
        "--base": tmp_path / "base.safetensors",
        "--space": tmp_path / "space.json",
        "-o": tmp_path / "runs",
        "--cache": tmp_path / "cache",
        "--runs": 2,
        "--workers": 1,
        "--device": "cpu",
    }


def flat(options: dict) -> list:
    return [part for pair in options.items() for part in pair]


def test_it_makes_runs_and_shows_their_scores(run, given, tmp_path: Path) -> None:
    result = run("sweep", *flat(given), "--json")
    assert result.code == 0, result.err
    assert result.json["base"] == str(tmp_path / "base.safetensors")
    paths = [Path(r["path"]) for r in result.json["runs"]]
    assert paths == [tmp_path / "runs" / f"run-0{i}.safetensors" for i in range(2)]
    assert all(path.exists() for path in paths)
    first = result.json["runs"][0]
    assert set(first["scores"]) == {"val", "test"}
    assert 1e-3 <= first["hyperparameters"]["lr"] <= 1e-2
    assert result.json["failed"] == []

    again = run("sweep", *flat({**given, "--runs": 3}))
    assert again.code == 0
    header, *rows = again.out.splitlines()
    assert set(header.split()) == {"run", "val", "test"}
    assert [row.split()[0] for row in rows] == ["run-00", "run-01", "run-02"]


def test_a_base_that_does_not_fit_is_refused_before_the_first_run(run, given, tmp_path) -> None:
    other = {**start_weights(), "more.weight": start_weights()[next(iter(start_weights()))]}
    save_file({name: w.clone() for name, w in other.items()}, tmp_path / "other.safetensors")
    result = run("sweep", *flat({**given, "--base": tmp_path / "other.safetensors"}))
    assert result.code == 1
    assert "more.weight: in the checkpoint, not in the model" in result.err
    assert not (tmp_path / "runs").exists()


def test_laws_are_scaled(run, given) -> None:
    result = run("sweep", *flat(given), "--scale", "epochs=2", "--json")
    assert [r["hyperparameters"]["epochs"] for r in result.json["runs"]] == [2, 2]
    assert run("sweep", *flat(given), "--scale", "epochs").code == 2


def test_failed_runs_are_told_and_all_failing_is_a_failure(run, given, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import shutil, sys\n"
        "if sys.argv[1] == '0': sys.exit('no luck')\n"
        "shutil.copy(sys.argv[2], sys.argv[3])\n"
    )
    command = f"{sys.executable} {program} {{index}} {{base}} {{out}}"
    result = run("sweep", *flat(given), "--train", command, "--json")
    assert result.code == 0
    assert [f["name"] for f in result.json["failed"]] == ["run-00"]
    assert "run-00 failed: TrainingError" in result.err
    assert len(result.json["runs"]) == 1
    other = {**given, "-o": tmp_path / "other", "--runs": 1}
    result = run("sweep", *flat(other), "--train", command, "--json")
    assert result.code == 1
    assert "all 1 runs failed" in result.json["error"]["message"]


def test_a_task_without_a_base_says_so(run, given) -> None:
    del given["--base"]
    result = run("sweep", *flat(given), "--json")
    assert result.code == 1
    assert "needs a base" in result.json["error"]["message"]
