from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_learned_fits_saves_and_tells_what_scripts_may_rely_on(run, kitchen, tmp_path) -> None:
    out = tmp_path / "soup.safetensors"
    arguments = ["learned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", out, "--epochs", "3", "--json")
    assert result.code == 0, result.err
    told = result.json
    assert {"coefficients", "beta", "losses", "scores", "peak_bytes"} <= set(told)
    assert set(told["coefficients"]) == set(kitchen.runs)
    assert sum(told["coefficients"].values()) == pytest.approx(1)
    assert told["peak_bytes"] > 10**7
    assert run("verify", out, "--json").json["verified"] is True


def test_a_person_sees_coefficients_of_groups_and_which_soup_was_taken(
    run, kitchen, tmp_path: Path
) -> None:
    arguments = ["learned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(
        *arguments, "-o", tmp_path / "s.safetensors", "--by", "layer", "--optimiser", "adamw",
        "--epochs", "2", "--step-size", "100",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert re.search(r"^\* (learned|greedy|uniform)", result.out, re.MULTILINE)
    assert "deciding (" in result.out
    assert any(path in result.out for path in kitchen.runs)


def test_layers_are_shown_as_a_heat_map(run, kitchen, tmp_path: Path) -> None:
    arguments = ["learned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    arguments += ["--by", "layer", "--groups", "2.*=head", "--epochs", "1", "--json"]
    figure = tmp_path / "map.svg"
    result = run(*arguments, "-o", tmp_path / "soup.safetensors", "--figure", figure)
    assert result.code == 0, result.err
    assert set(result.json["learned_coefficients"]) == {"0", "head"}
    assert result.json["figure"] == str(figure)
    assert "run-00" in figure.read_text()
    again = run(*arguments, "-o", tmp_path / "other.safetensors", "--figure", figure)
    assert again.code == 1
    assert again.json["error"]["type"] == "OutputExistsError"
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (["--groups", "no-equals-sign"], 2, "PATTERN=NAME"),
        (["--groups", "nothing.*=x"], 1, "no tensor matches"),
        (["--step-size", "10"], 1, "leave batch_size out"),
        (["--max-memory", "1KB"], 1, "at least"),
        (["--figure", "map.txt"], 1, ".svg, .png or .pdf"),
        (["--decide-on", "test"], 1, "role is test"),
        (["--eval-deciding", "x {checkpoint}"], 2, "--eval-deciding"),
    ],
)
def test_options_that_cannot_work_are_refused(
    run, kitchen, tmp_path: Path, options: list[str], code: int, hint: str
) -> None:
    arguments = ["learned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "x.safetensors", *options)
    assert result.code == code
    assert hint in result.err
    assert not (tmp_path / "x.safetensors").exists()


def test_workers_divide_the_scoring_and_change_nothing(run, kitchen, tmp_path: Path) -> None:
    told = []
    for workers in ("1", "2"):
        result = run(
            "learned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / workers,
            "-o", tmp_path / f"{workers}.safetensors", "--epochs", "2", "--workers", workers,
            "--device", "cpu", "--json",
        )  # fmt: skip
        assert result.code == 0, result.err
        told.append(result.json)
    assert told[0]["coefficients"] == told[1]["coefficients"]
    assert told[0]["scores"] == told[1]["scores"]
