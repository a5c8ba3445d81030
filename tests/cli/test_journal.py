from __future__ import annotations


def test_what_was_scored_is_listed_and_can_be_forgotten(run, kitchen, tmp_path) -> None:
    cache = tmp_path / "cache"
    run("evaluate", kitchen.runs[0], "--task", kitchen.task, "--cache", cache, "--json")
    listed = run("journal", "list", "--cache", cache, "--json").json["entries"]
    assert [entry["n"] for entry in listed] == [400, 400, 400]
    assert "accuracy" in run("journal", "list", "--cache", cache).out
    assert run("journal", "clear", "--cache", cache, "--json").json == {"cleared": 3}
    assert run("journal", "list", "--cache", cache, "--json").json == {"entries": []}


def test_results_of_one_model_can_be_forgotten(run, kitchen, tmp_path) -> None:
    cache = tmp_path / "cache"
    run("evaluate", *kitchen.runs[:2], "--task", kitchen.task, "--cache", cache)
    model = run("journal", "list", "--cache", cache, "--json").json["entries"][0]["model"]
    assert (
        run("journal", "clear", "--model", model, "--cache", cache, "--json").json["cleared"] == 3
    )
    assert len(run("journal", "list", "--cache", cache, "--json").json["entries"]) == 3


def test_a_cache_that_was_never_used_is_empty_and_is_not_made(run, tmp_path) -> None:
    assert run("journal", "list", "--cache", tmp_path / "x", "--json").json == {"entries": []}
    assert run("journal", "clear", "--cache", tmp_path / "x").out == "0 entries forgotten\n"
    assert not (tmp_path / "x").exists()
