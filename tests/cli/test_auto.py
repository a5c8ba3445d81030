from __future__ import annotations


def test_auto_shows_every_recipe_and_keeps_the_best(run, kitchen, tmp_path) -> None:
    out = tmp_path / "soup.safetensors"
    arguments = ["auto", *kitchen.runs, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    arguments += ["--base", kitchen.base, "--alphas", "0:1:0.5"]
    result = run(*arguments, "-o", out, "--json")
    assert result.code == 0, result.err
    rows = {row["recipe"]: row for row in result.json["table"]}
    assert {"best-single", "uniform", "wise-ft", "greedy", "pruned", "ensemble"} <= set(rows)
    assert {"recipe", "scores", "coefficients", "p_value"} <= set(rows["greedy"])
    best = max(row["scores"]["val"]["value"] for row in rows.values() if row["chosen_from"])
    assert rows[result.json["chosen"]]["scores"]["val"]["value"] == best
    assert run("verify", out, "--json").json["verified"] is True
    text = run(*arguments, "-o", out, "--force").out
    assert f"{result.json['chosen']} was chosen on val" in text
    assert f"\n* {result.json['chosen']} " in text
    assert "ingredients" in text
