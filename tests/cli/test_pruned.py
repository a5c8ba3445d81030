from __future__ import annotations


def test_pruned_takes_out_saves_and_tells_what_scripts_may_rely_on(run, kitchen, tmp_path) -> None:
    out = tmp_path / "soup.safetensors"
    arguments = ["pruned", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", out, "--json")
    assert result.code == 0, result.err
    told = result.json
    taken_out = {step["candidate"] for step in told["steps"] if step["accepted"]}
    assert set(told["selected"]) == set(kitchen.runs) - taken_out
    assert {"val", "test", "shifted", "shift_average"} <= set(told["scores"])
    assert told["output"] == str(out)
    assert run("verify", out, "--json").json["verified"] is True
    text = run(*arguments, "-o", out, "--force").out
    assert ("taken out" in text) == bool(taken_out)
