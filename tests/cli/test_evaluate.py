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
    assert "run-00 - run-01" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "shift_average" not in text, "there is one shift, whose column says the same"


def test_models_are_compared_with_the_best_unless_all_pairs_are_asked_for(
    run, kitchen, tmp_path: Path
) -> None:
    arguments = ["evaluate", *kitchen.runs[:3], "--task", kitchen.task, "--cache", tmp_path / "c"]
    result = run(*arguments, "--json")
    values = {path: scores["val"]["value"] for path, scores in result.json["scores"].items()}
    assert values[result.json["best"]] == max(values.values())
    assert len({(pair["a"], pair["b"]) for pair in result.json["pairs"]}) == 3
    best = Path(result.json["best"]).stem
    text = run(*arguments).out
    pairs = {line.split("  ")[0] for line in text.splitlines() if " - run-" in line}
    assert len(pairs) == 2
    assert all(best in pair for pair in pairs)
    assert f"\n* {best} " in text
    every = run(*arguments, "--pairs").out
    assert len({line.split("  ")[0] for line in every.splitlines() if " - run-" in line}) == 3


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
