from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.test_app import modules_after


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(30, 20, generator=generator)
    paths = []
    for i in range(3):
        move = 0.1 * i * torch.randn(30, 20, generator=generator)
        paths.append(tmp_path / f"run-{i}.safetensors")
        save_file({"w": start + move, "num_batches_tracked": torch.tensor(i)}, paths[-1])
    return paths


def test_one_checkpoint_and_what_scripts_may_rely_on(run, runs) -> None:
    result = run("inspect", runs[0], "--json")
    assert result.code == 0
    assert result.json["compatible"] is None
    assert result.json["problems"] == []
    (one,) = result.json["checkpoints"]
    assert one["path"] == str(runs[0])
    assert one["format"] == "safetensors"
    assert (one["tensors"], one["parameters"], one["bytes"]) == (2, 601, 2408)
    assert one["dtypes"] == {"F32": 1, "I64": 1}
    assert one["fingerprint"] is None


def test_fingerprints_are_made_when_asked_for_and_remembered(run, runs) -> None:
    made = run("inspect", *runs, "--fingerprint", "--json").json["checkpoints"]
    assert len({one["fingerprint"] for one in made}) == 3
    assert run("inspect", *runs, "--json").json["checkpoints"] == made


def test_those_that_fit_are_said_to_fit_and_to_share_a_start(run, runs) -> None:
    told = run("inspect", *runs, "--json").json
    assert told["compatible"] is True
    assert [one["path"] for one in told["starts"]] == [str(path) for path in runs[1:]]
    result = run("inspect", *runs)
    assert "They fit" in result.out
    assert "seem to share an" in result.out
    assert "--base" in result.out


def test_without_a_base_too_strangers_are_said_to_share_no_basin(run, runs, tmp_path) -> None:
    other = torch.randn(30, 20, generator=torch.Generator().manual_seed(9))
    save_file({"w": other, "num_batches_tracked": torch.tensor(0)}, tmp_path / "other.safetensors")
    text = run("inspect", *runs, tmp_path / "other.safetensors").out
    assert "But 1 of 4 most likely did not start where the first" in " ".join(text.split())
    assert "share no basin" in text
    assert "worthless:\n" + str(tmp_path / "other.safetensors") in text


def test_what_says_nothing_is_called_unclear(run, tmp_path) -> None:
    for name in ("a", "b"):
        save_file({"bias": torch.zeros(4)}, tmp_path / f"{name}.safetensors")
    assert "not clear" in run("inspect", tmp_path / "a.safetensors", tmp_path / "b.safetensors").out


def test_every_problem_is_listed_and_that_is_no_failure(run, runs, tmp_path: Path) -> None:
    save_file(
        {"w": torch.zeros(3, 20), "num_batches_tracked": torch.tensor(1.0)},
        tmp_path / "other.safetensors",
    )
    result = run("inspect", *runs, tmp_path / "other.safetensors", "--json")
    assert (result.code, result.json["compatible"]) == (0, False)
    assert {p["tensor"] for p in result.json["problems"]} == {"w", "num_batches_tracked"}
    assert "cannot be averaged" in run("inspect", *runs, tmp_path / "other.safetensors").out


def test_an_unreadable_file_is_a_failure(run, runs, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    result = run("inspect", runs[0], tmp_path / "bad.safetensors", "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "CheckpointFormatError"


def test_moves_from_a_base_and_evidence_of_a_shared_start(run, runs, tmp_path: Path) -> None:
    other = torch.randn(30, 20, generator=torch.Generator().manual_seed(9))
    save_file({"w": other, "num_batches_tracked": torch.tensor(0)}, tmp_path / "other.safetensors")
    arguments = ["inspect", *runs, tmp_path / "other.safetensors", "--base", runs[0]]
    moves = run(*arguments, "--json").json["moves"]
    assert [round(one["distance"], 1) for one in moves["ingredients"]] == [0.0, 0.1, 0.2, 1.4]
    verdicts = [one["same_initialisation"]["verdict"] for one in moves["ingredients"]]
    assert verdicts == ["shared", "shared", "shared", "different"]
    assert len(moves["angles"]) == 6
    text = run(*arguments).out
    assert "does not seem to share the initialisation" in text
    assert "angles between moves" in text
    assert "But 1 of 4 most likely did not start from" in text
    assert "worthless: " + str(tmp_path / "other.safetensors") in text
    assert "fit: same" in run("inspect", *runs, "--base", runs[0]).out
    assert "But" not in run("inspect", *runs, "--base", runs[0]).out


def test_tables_of_moves_name_runs_shortly_and_angles_make_a_triangle(run, runs) -> None:
    lines = run("inspect", *runs, "--base", runs[0]).out.splitlines()
    start = lines.index("angles between moves, in degrees:")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["run-1", "run-2"],
        ["run-0", "-", "-"],
        ["run-1", lines[start + 3].split()[1]],
    ]


def test_no_column_is_empty(run, runs) -> None:
    assert "fingerprint" not in run("inspect", *runs).out
    assert "fingerprint" in run("inspect", *runs, "--fingerprint").out


def test_inspecting_does_not_import_torch(runs, tmp_path: Path) -> None:
    assert "torch" not in modules_after("inspect", *map(str, runs), "--base", str(runs[0]))
