from __future__ import annotations

import json

import pytest

KEYS = {
    "verdict", "same_init", "angles", "barriers", "landscape", "diversity", "calibration",
    "robustness", "soup_vs_ensemble",
}  # fmt: skip


def _numbers(data):
    """Every number anywhere in `data`."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [number for item in data for number in _numbers(item)]
    return [data] if isinstance(data, (int, float)) else []


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(kitchen, cache):
    given = ["diagnose", *kitchen.runs, "--task", kitchen.task, "--base", kitchen.base]
    return [*given, "--cache", cache]


def test_the_keys_that_scripts_rely_on_and_a_page_with_the_same_numbers(
    run, arguments, kitchen, tmp_path
) -> None:
    out = tmp_path / "diagnosis"
    result = run(*arguments, "-o", out, "--line", f"{kitchen.base},uniform", "--json")
    assert result.code == 0, result.err
    told = result.json
    assert set(told) >= KEYS
    assert told["report"] == str(out / "report.html")
    record = json.loads((out / "report.json").read_text())
    del told["report"]
    shown = set(_numbers(record["figures"]))
    heights = [line["barrier"] for line in told["barriers"]["lines"]]
    assert heights
    assert shown.issuperset(heights)
    assert record["verdict"] == told["verdict"]["sentences"]
    page = (out / "report.html").read_text()
    for sentence in told["verdict"]["sentences"]:
        assert sentence.replace("−", "-") in page.replace("&#39;", "'").replace("−", "-")
    lines = [(line["a"], line["b"], line["kind"]) for line in told["barriers"]["lines"]]
    assert lines[0] == (kitchen.base, "uniform", "asked for")


def test_a_second_call_scores_nothing_and_does_not_overwrite_unasked(
    run, arguments, tmp_path
) -> None:
    (tmp_path / "report.html").write_text("mine")
    refused = run(*arguments, "-o", tmp_path)
    assert refused.code == 1
    assert "--force" in refused.err
    assert (tmp_path / "report.html").read_text() == "mine"
    # What stockpot did not write is not replaced, whatever is said.
    forced = run(*arguments, "-o", tmp_path, "--force")
    assert forced.code == 1
    assert (tmp_path / "report.html").read_text() == "mine"
    (tmp_path / "report.html").unlink()
    assert run(*arguments, "-o", tmp_path).code == 0
    assert run(*arguments, "-o", tmp_path).code == 1
    again = run(*arguments, "-o", tmp_path, "--force")
    assert again.code == 0
    assert "0 evaluations were made" in again.out
    assert "uniform" in again.out
    assert "barrier (nat)" in again.out
    assert "uniform" in (tmp_path / "report.html").read_text()


def test_a_dry_run_evaluates_nothing_and_says_what_a_budget_buys(run, arguments, tmp_path) -> None:
    result = run(*arguments[:-1], tmp_path / "empty", "--budget", "60", "--dry-run", "--json")
    assert result.code == 0, result.err
    budget = result.json["budget"]
    assert budget["planned"] == sum(budget["parts"].values()) <= 60
    assert not (tmp_path / "empty" / "journal.sqlite").exists()
    assert "together" in run(*arguments, "--dry-run").out


@pytest.mark.parametrize(
    ("more", "code", "hint"),
    [
        (["--budget", "3"], 1, "--budget 9"),
        (["--line", "uniform"], 2, "write two models as A,B"),
        (["--line", "uniform,nothing"], 1, "nothing: no such model"),
        (["--budget", "0"], 2, "--budget"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_remedy(run, arguments, more, code, hint) -> None:
    result = run(*arguments, *more)
    assert result.code == code
    assert hint in result.err


def test_hyperparameters_come_from_the_records_of_a_sweep(run, arguments, kitchen) -> None:
    from pathlib import Path

    from stockpot.train.sweep.records import RunRecord

    for i, path in enumerate(kitchen.runs):
        record = RunRecord(i, f"run-{i:02}", Path(path).name, "done", {"lr": 10.0**-i}, seed=5)
        record.save(Path(path).parent)
    try:
        told = run(*arguments, "--json").json
    finally:
        for path in kitchen.runs:
            Path(path).with_suffix(".json").unlink()
    assert told["ingredients"]["hyperparameters"][kitchen.runs[1]] == {"lr": 0.1, "seed": 5}
    assert {tuple(pair["differs"]) for pair in told["angles"]["pairs"]} == {("lr",)}
