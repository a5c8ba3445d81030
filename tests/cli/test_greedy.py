from __future__ import annotations

from pathlib import Path

import pytest


def test_greedy_chooses_saves_and_tells_what_scripts_may_rely_on(run, kitchen, tmp_path) -> None:
    out = tmp_path / "soup.safetensors"
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", out, "--json")
    assert result.code == 0, result.err
    told = result.json
    assert set(told["selected"]) <= set(kitchen.runs)
    assert [step["accepted"] for step in told["steps"]].count(True) == len(told["selected"])
    assert {"candidate", "score", "score_at_most", "examples", "p_value"} <= set(told["steps"][0])
    assert {"val", "test", "shifted", "shift_average"} <= set(told["scores"])
    assert told["examples_plain"] == 400 * 3
    assert told["output"] == str(out)
    assert run("verify", out, "--json").json["verified"] is True


def test_the_score_of_the_soup_is_at_least_that_of_the_first(run, kitchen, tmp_path: Path) -> None:
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    told = run(*arguments, "-o", tmp_path / "soup.safetensors", "--json").json
    assert told["scores"]["val"]["value"] >= told["steps"][0]["score"]


def test_a_person_sees_the_steps_and_the_scores(run, kitchen, tmp_path: Path) -> None:
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "soup.safetensors")
    assert "decision" in result.out
    assert "±" in result.out
    assert str(tmp_path / "soup.safetensors") in result.out


def test_an_existing_output_is_refused_before_anything_is_scored(run, kitchen, tmp_path) -> None:
    (tmp_path / "soup.pt").write_text("precious")
    result = run("greedy", *kitchen.runs, "--task", "no-such-task", "-o", tmp_path / "soup.pt")
    assert result.code == 1
    assert "exists" in result.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--task", "handwritten"], "did you mean 'handwriting'"),
        (["--choose-on", "test"], "role is test"),
    ],
)
def test_what_cannot_choose_is_refused(run, kitchen, tmp_path: Path, options, hint) -> None:
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "x.safetensors", *options)
    assert result.code == 1
    assert hint in result.err
    assert not (tmp_path / "x.safetensors").exists()


def test_orders_curve_and_optimism_are_shown(run, kitchen, tmp_path: Path) -> None:
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    arguments += ["--random-orders", 2, "--curve", 2, "--selection-optimism", "full"]
    result = run(*arguments, "-o", tmp_path / "soup.safetensors")
    assert result.code == 0, result.err
    for shown in ("2 random orders", "mean of", "selection optimism", "of a plain loop"):
        assert shown in result.out
    told = run(*arguments, "-o", tmp_path / "again.safetensors", "--json").json
    assert told["optimism"]["candidates"] == 2 * len(kitchen.runs)
    assert set(told["random_orders"]["mean"]) == set(told["scores"])
    assert len(told["ingredients_curve"]) == len(kitchen.runs)


def test_without_a_journal_nothing_is_left(run, kitchen, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    arguments = ["greedy", *kitchen.runs, "--task", kitchen.task, "--no-journal"]
    result = run(*arguments, "-o", tmp_path / "soup.safetensors")
    assert result.code == 0, result.err
    assert not list((tmp_path / "home").rglob("journal*"))
    result = run(*arguments, "--cache", tmp_path, "-o", tmp_path / "soup.pt")
    assert result.code == 2
