"""Programs in place of a task: --eval, --eval-test and --direction."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

SCORE = """
import sys
from safetensors.numpy import load_file
w = load_file(sys.argv[1])["0.weight"]
print("loss:", float(abs(w - float(sys.argv[2])).mean()))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Prints how far the first layer is from 0: the lower, the closer to where it started."""
    (tmp_path / "score.py").write_text(SCORE)
    return f"{shlex.quote(sys.executable)} {tmp_path / 'score.py'} {{checkpoint}}"


def test_a_program_chooses_and_another_reports(run, kitchen, program, tmp_path: Path) -> None:
    arguments = ["greedy", *kitchen.runs, "--eval", f"{program} 0", "--direction", "min"]
    arguments += ["--eval-test", f"{program} 1", "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "soup.safetensors", "--json")
    assert result.code == 0, result.err
    first = result.json["steps"][0]
    assert all(first["score"] <= step["score"] for step in result.json["steps"] if step["score"])
    assert set(result.json["scores"]) == {"held-out", "test"}
    assert result.json["direction"] == "min"


def test_that_nothing_independent_was_measured_is_said(run, kitchen, program, tmp_path) -> None:
    arguments = ["interpolate", kitchen.base, kitchen.runs[0], "--eval", f"{program} 0"]
    arguments += ["--alphas", "0:1:0.5", "--direction", "min", "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "x.safetensors", "--json")
    assert result.code == 0, result.err
    assert "nothing independent was measured" in result.err
    values = {p["alpha"]: p["scores"]["held-out"]["value"] for p in result.json["curve"]}
    assert values[result.json["chosen"]["alpha"]] == min(values.values())


def test_every_recipe_takes_a_program(run, kitchen, program, tmp_path: Path) -> None:
    for command in ("pruned", "auto"):
        arguments = [command, *kitchen.runs[:2], "--eval", f"{program} 0", "--direction", "min"]
        out = tmp_path / f"{command}.safetensors"
        result = run(*arguments, "--cache", tmp_path / "cache", "-o", out, "--json")
        assert result.code == 0, result.err


def test_a_search_fits_on_one_program_and_another_decides(
    run, kitchen, program, tmp_path: Path
) -> None:
    arguments = ["learned", *kitchen.runs[:3], "--eval", f"{program} 0", "--direction", "min"]
    arguments += ["--eval-deciding", f"{program} 0.01", "--eval-test", f"{program} 0.02"]
    arguments += ["--budget", "12", "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "soup.safetensors", "--json")
    assert result.code == 0, result.err
    told = result.json
    assert set(told["scores"]) == {"held-out", "deciding", "test"}
    assert told["n_evaluations"] <= 12
    deciding = {name: part["deciding"] for name, part in told["parts"].items()}
    assert deciding[told["taken"]] == min(deciding.values())
    shown = run(*arguments, "-o", tmp_path / "again.safetensors")
    assert shown.code == 0, shown.err
    assert "deciding" in shown.out


def test_evaluating_with_a_program(run, kitchen, program, tmp_path: Path) -> None:
    arguments = ["evaluate", *kitchen.runs[:2], "--eval", f"{program} 0"]
    result = run(*arguments, "--cache", tmp_path / "cache", "--json")
    assert result.code == 0, result.err
    values = [result.json["scores"][path]["held-out"]["value"] for path in kitchen.runs[:2]]
    (pair,) = result.json["pairs"]
    assert pair["difference"] == pytest.approx(values[0] - values[1])
    assert pair["p_value"] is None


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ([], "give --task, or --eval"),
        (["--task", "handwriting", "--eval", "x {checkpoint}"], "exclude each other"),
        (["--task", "handwriting", "--eval-test", "x {checkpoint}"], "--eval-test"),
    ],
)
def test_either_a_task_or_a_program(run, kitchen, tmp_path: Path, options, hint) -> None:
    result = run("greedy", *kitchen.runs, "-o", tmp_path / "x.safetensors", *options)
    assert result.code == 2
    assert hint in " ".join(result.err.split())


def test_a_program_that_fails_is_quoted(run, kitchen, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)' {{checkpoint}}"
    arguments = ["greedy", *kitchen.runs, "--eval", command, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "x.safetensors")
    assert result.code == 1
    assert "exit code 3" in result.err
