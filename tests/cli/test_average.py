from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.test_app import modules_after

import stockpot


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(3):
        tensors = {"w": torch.full((4, 3), float(i)), "b": torch.arange(3.0) * i}
        paths.append(tmp_path / "runs" / f"run-{i}.safetensors")
        paths[-1].parent.mkdir(exist_ok=True)
        save_file(tensors, paths[-1], metadata={"format": "pt"})
    return paths


def test_the_uniform_soup_and_what_scripts_may_rely_on(run, runs, tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    result = run("average", *runs, "-o", out, "--json")
    assert result.code == 0
    assert result.json["output"] == str(out)
    assert [one["path"] for one in result.json["ingredients"]] == [str(path) for path in runs]
    assert [one["coefficient"] for one in result.json["ingredients"]] == [1 / 3] * 3
    assert all(len(one["fingerprint"]) == 32 for one in result.json["ingredients"])
    assert result.json["bytes_read"] == 3 * 60
    assert result.json["bytes_written"] == out.stat().st_size
    assert result.json["seconds"] > 0
    assert load_file(out)["b"].tolist() == [0.0, 1.0, 2.0]


def test_a_person_gets_a_table(run, runs, tmp_path: Path) -> None:
    result = run("average", *runs, "-o", tmp_path / "soup.safetensors")
    assert result.code == 0
    assert "from 3 ingredients" in result.out
    assert f"{runs[2]}     0.333333" in result.out


def test_the_next_step_loads_a_folder_with_its_head(run, runs, tmp_path: Path) -> None:
    for i, path in enumerate(runs):
        folder = tmp_path / "folders" / f"run-{i}"
        folder.mkdir(parents=True)
        path.rename(folder / "model.safetensors")
        config = {"architectures": ["BertForSequenceClassification"]}
        (folder / "config.json").write_text(json.dumps(config))
    soup = tmp_path / "soup"
    result = run("average", tmp_path / "folders", "-o", soup)
    assert f'load it   BertForSequenceClassification.from_pretrained("{soup}")' in result.out
    (soup / "config.json").write_text("{}")
    result = run("average", soup, "-o", tmp_path / "again")
    assert f'load it   stockpot.open("{tmp_path}/again").load_into(model)' in result.out


def test_weights_are_coefficients_in_the_order_of_arguments(run, runs, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert run("average", *runs, "-o", out, "--weights", "0.5,0.25,0.25").code == 0
    assert load_file(out)["w"][0, 0] == 0.75
    assert (
        run("average", *runs, "-o", out, "--weights", "2,1,1", "--normalise", "--force").code == 0
    )
    assert load_file(out)["w"][0, 0] == 0.75


def test_weights_are_never_normalised_unasked(run, runs, tmp_path: Path) -> None:
    result = run("average", *runs, "-o", tmp_path / "x.safetensors", "--weights", "1,1,1")
    assert result.code == 1
    assert "sum to 3" in result.err
    assert "--normalise" in result.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--weights", "a,b"], "'a,b' is no list of numbers"),
        (["--normalise"], "--normalise means nothing without --weights"),
        (["--max-memory", "lots"], "'lots' is not a size"),
        (["--max-shard-size", "5 apples"], "is not a size"),
        (["--dtype", "float17"], "'float17' is not a dtype"),
        (["--on-mismatch", "ignore"], "ignore"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_wrong_options_are_wrong_usage(run, runs, tmp_path, options, hint) -> None:
    arguments = ["average", *runs, "-o", tmp_path / "x.safetensors", *options]
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert hint in " ".join(result.err.split())
    assert run(*arguments, "--json").json["error"]["type"] == "UsageError"


def test_a_missing_output_is_wrong_usage(run, runs) -> None:
    result = run("average", *runs)
    assert result.code == 2
    assert "--output" in result.err


def test_nothing_is_overwritten_without_force(run, runs, tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    out.write_text("precious")
    result = run("average", *runs, "-o", out, "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "OutputExistsError"
    assert out.read_text() == "precious"
    assert run("average", *runs, "-o", out, "--force").code == 0


def test_an_ingredient_is_never_written_over(run, runs) -> None:
    before = runs[0].read_bytes()
    result = run("average", *runs, "-o", runs[0], "--force", "--json")
    assert result.json["error"]["type"] == "OutputExistsError"
    assert runs[0].read_bytes() == before


def test_a_dry_run_states_what_it_would_take_and_writes_nothing(run, runs, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run("average", *runs, "-o", tmp_path / "soup.pt", "--dry-run", "--json")
    assert sorted(tmp_path.rglob("*")) == before
    planned = result.json
    assert planned["dry_run"] is True
    assert planned["memory_bytes"] > 0
    done = run("average", *runs, "-o", tmp_path / "soup.pt", "--json").json
    assert planned["bytes_written"] == done["bytes_written"]
    assert planned["bytes_read"] == done["bytes_read"]
    assert "nothing written" in run("average", *runs, "-o", tmp_path / "y", "--dry-run").out


def test_a_folder_of_runs_stands_for_its_runs(run, runs, tmp_path: Path) -> None:
    result = run("average", runs[0].parent, "-o", tmp_path / "x.safetensors", "--json")
    assert [one["path"] for one in result.json["ingredients"]] == [str(path) for path in runs]


def test_what_does_not_fit_is_listed_and_can_be_left_out(run, runs, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(5, 3), "b": torch.zeros(3)}, other)
    arguments = ["average", *runs, other, "-o", tmp_path / "x.safetensors", "--json"]
    refused = run(*arguments)
    assert refused.code == 1
    assert [(p["tensor"], p["found"]) for p in refused.json["error"]["problems"]] == [
        ("w", "F32 (5, 3)")
    ]
    done = run(*arguments, "--on-mismatch", "leave-out")
    assert done.json["left_out"] == [str(other)]
    assert f"left out: {other}" in done.err


def test_too_little_memory_is_refused_naming_the_minimum(run, runs, tmp_path: Path) -> None:
    result = run("average", *runs, "-o", tmp_path / "x.safetensors", "--max-memory", "1MB")
    assert result.code == 1
    assert "max_memory is 1.0 MB" in result.err
    assert not (tmp_path / "x.safetensors").exists()


def test_the_best_few_by_a_task_are_averaged_and_scored(run, kitchen, tmp_path: Path) -> None:
    arguments = ["average", *kitchen.runs, "--task", kitchen.task, "--no-journal", "--top", 2]
    told = run(*arguments, "-o", tmp_path / "soup.safetensors", "--json").json
    scored = run("evaluate", *kitchen.runs, "--task", kitchen.task, "--no-journal", "--json").json
    ranking = sorted(kitchen.runs, key=lambda p: -scored["scores"][p]["val"]["value"])
    assert told["selected"] == ranking[:2]
    assert set(told["coefficients"].values()) == {0.5}
    assert set(told["scores"]) == {"val", "test", "shifted", "shift_average"}
    assert told["output"] == str(tmp_path / "soup.safetensors")
    text = run(*arguments, "-o", tmp_path / "again.safetensors").out
    assert "±" in text
    assert "coefficient" in text


@pytest.mark.parametrize(
    ("options", "hint"),
    [(["--top", 1], "--task"), (["--top", 1, "--weights", "1,0,0"], "exclude each other")],
)
def test_the_best_few_need_something_to_choose_by(run, runs, tmp_path, options, hint) -> None:
    result = run("average", *runs, "-o", tmp_path / "soup.safetensors", *options)
    assert result.code == 2
    assert hint in " ".join(result.err.split())


def test_averaging_does_not_import_torch(runs, tmp_path: Path) -> None:
    arguments = ["average", *map(str, runs), "-o", str(tmp_path / "x.safetensors")]
    assert "torch" not in modules_after(*arguments)


def test_side_files_that_differ_are_said(run, tmp_path: Path) -> None:
    for i in range(2):
        folder = tmp_path / f"model-{i}"
        folder.mkdir()
        save_file({"w": torch.ones(2) * i}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model": i}))
    result = run("average", tmp_path / "model-0", tmp_path / "model-1", "-o", tmp_path / "soup")
    assert result.code == 0
    assert "config.json" in result.err
    files = {"README.md", "config.json", "model.safetensors"}
    assert files <= set(os.listdir(tmp_path / "soup"))


def test_the_bytes_depend_on_the_weights_alone(run, tmp_path: Path) -> None:
    """Not on the order of arguments, on threads, or on how the inputs are cut into files."""
    single, sharded = [], []
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        tensors = {f"layers.{j}.w": torch.randn(400, 300, generator=generator) for j in range(12)}
        single.append(tmp_path / f"{i}.safetensors")
        save_file(tensors, single[-1], metadata={"format": "pt"})
        sharded.append(tmp_path / f"{i}-sharded")
        cut = ["average", single[-1], "-o", sharded[-1], "--max-shard-size", "1MB"]
        assert run(*cut).code == 0
        assert (sharded[-1] / "model.safetensors.index.json").exists()
    # What a plan allows counts what the process of the tests holds by now.
    needed = (
        stockpot.Mixture(stockpot.Ingredients(single)).plan(tmp_path / "soup", threads=1).memory
    )
    arguments = [
        [*single, "--threads", "1"],
        [single[2], single[0], single[1], "--threads", "4"],
        [sharded[1], single[2], sharded[0], "--max-memory", f"{needed // 1_000_000 + 100}MB"],
    ]
    found = set()
    for number, given in enumerate(arguments):
        out = tmp_path / f"soup-{number}.safetensors"
        assert run("average", *given, "-o", out).code == 0
        found.add(out.read_bytes())
    assert len(found) == 1


def test_the_same_weights_given_twice_are_said_to_count_twice(run, runs, tmp_path: Path) -> None:
    twice = tmp_path / "copy.safetensors"
    twice.write_bytes(runs[0].read_bytes())
    result = run("average", *runs, twice, "-o", tmp_path / "soup.safetensors")
    assert result.code == 0
    assert f"{twice} holds the same weights as {runs[0]}" in result.err
    unused = ["--weights", ",".join([*["1"] * len(runs), "0"]), "--normalise", "--force"]
    again = run("average", *runs, twice, "-o", tmp_path / "soup.safetensors", *unused)
    assert "same weights" not in again.err


def test_an_output_that_cannot_be_written_is_named_as_it_was_given(run, runs, tmp_path) -> None:
    (tmp_path / "file").touch()
    result = run("average", *runs, "-o", tmp_path / "file" / "soup.safetensors")
    assert result.code == 1
    assert "soup.safetensors: Not a directory" in result.err
    hidden = run("average", *runs, "-o", "/proc/soup.safetensors")
    assert hidden.err.splitlines()[-1].startswith("Error: /proc/soup.safetensors: ")


def test_an_output_without_a_name_is_wrong_usage(run, runs) -> None:
    assert run("average", *runs, "-o", "").code == 2


def test_what_differs_in_form_is_reconciled_as_the_options_say(run, tmp_path: Path) -> None:
    one = {"module.w": torch.ones(2, 2), "module.head": torch.ones(3)}
    two = {"net.w": torch.zeros(2, 2, dtype=torch.bfloat16), "net.head": torch.zeros(5)}
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, state in zip(paths, (one, two), strict=True):
        save_file(state, path)
    out = tmp_path / "out.safetensors"
    assert "--dtype" in run("average", *paths, "-o", out, "--strip-prefix", "net.").err
    options = ["--dtype", "f32", "--exclude", "head", "--strip-prefix", "net."]
    for command in (["inspect", *paths], ["average", *paths, "-o", out]):
        result = run(*command, *options, "--json")
        assert result.code == 0, result.err
    found = load_file(out)
    assert found["w"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert found["head"].tolist() == [1.0, 1.0, 1.0]
    assert run("verify", out).code == 0


def test_only_the_last_runs_of_a_folder_and_patterns_with_weights_of_their_own(
    run, runs, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    result = run("average", runs[0].parent, "-o", out, "--last", "2", "--coefficients", "b=0,1",
                 "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert [one["path"] for one in result.json["ingredients"]] == [str(path) for path in runs[1:]]
    assert load_file(out)["b"].tolist() == [0.0, 2.0, 4.0]
    assert load_file(out)["w"][0, 0] == 1.5


def test_a_dry_run_names_what_is_taken_and_what_would_be_replaced(
    run, runs, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("model.safetensors", "thesis.tex", "model-00001-of-00002.safetensors"):
        (folder / name).write_text("older")
    found = run("average", *runs, "-o", folder, "--force", "--dry-run")
    assert found.code == 0
    assert f"taken: {', '.join(map(str, runs))}" in found.out
    (line,) = [line for line in found.out.splitlines() if line.startswith("replaces")]
    assert line.endswith(": model-00001-of-00002.safetensors, model.safetensors")
    assert (folder / "model.safetensors").read_text() == "older"
