from __future__ import annotations

from pathlib import Path


def test_scores_pairs_and_the_ensemble(run, kitchen, tmp_path) -> None:
    arguments = ["evaluate", *kitchen.runs[:2], "--task", kitchen.task]
    arguments += ["--cache", tmp_path / "cache", "--ensemble"]
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    assert list(result.json["scores"]) == kitchen.runs[:2]
    score = result.json["scores"][kitchen.runs[0]]["test"]
    assert score["low"] < score["value"] < score["high"]
    assert (score["n"], score["metric"]) == (400, "accuracy")
    (pair,) = [pair for pair in result.json["pairs"] if pair["split"] == "test"]
    other = result.json["scores"][kitchen.runs[1]]["test"]
    assert abs(pair["difference"] - (score["value"] - other["value"])) < 1e-12
    assert set(result.json["ensemble"]) == {"val", "test", "shifted", "shift_average"}
    text = run(*arguments).out
    assert "ensemble" in text
    assert f"{kitchen.runs[0]} - {kitchen.runs[1]}" in text


def test_one_checkpoint_has_no_pairs(run, kitchen, tmp_path) -> None:
    arguments = ["evaluate", kitchen.runs[0], "--task", kitchen.task, "--cache", tmp_path / "c"]
    told = run(*arguments, "--json").json
    assert (told["pairs"], told["ensemble"]) == ([], None)


def test_a_task_that_chooses_on_what_it_reports_is_refused(run, kitchen, tmp_path) -> None:
    sound = Path(kitchen.task.removesuffix(":task")).read_text()
    file = tmp_path / "task.py"
    file.write_text(sound.replace("part(500, 900)", "part(500, 901)"))
    for command in ("evaluate", "greedy"):
        arguments = [command, *kitchen.runs[:2], "--task", f"{file}:task"]
        arguments += ["-o", tmp_path / "soup.safetensors"] if command == "greedy" else []
        result = run(*arguments, "--cache", tmp_path / "cache", "--json")
        assert result.code == 1
        assert "val and test share 1 examples" in result.json["error"]["message"]
    assert not (tmp_path / "soup.safetensors").exists()
