from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

QUICK = ["--phases", "2", "--candidates", "2", "--epochs", "1", "--lr-max", "0.01",
         "--workers", "1", "--device", "cpu"]  # fmt: skip


def test_sparse_tells_what_scripts_may_rely_on(run, kitchen, tmp_path: Path) -> None:
    out = tmp_path / "sparse.safetensors"
    arguments = ["sparse", kitchen.runs[0], "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "--sparsity", "0.9", "-o", out, *QUICK, "--json")
    assert result.code == 0, result.err
    told = result.json
    assert {"phases", "sparsity", "scores", "output"} <= set(told)
    assert all({"sparsity", "candidates", "soup", "scores"} <= set(p) for p in told["phases"])
    weights = load_file(out)
    zeros = sum(int((weights[name] == 0).sum()) for name in ("0.weight", "2.weight"))
    assert zeros == round(0.9 * (64 * 16 + 16 * 10))
    assert told["sparsity"] == zeros / (64 * 16 + 16 * 10)
    assert set(told["scores"]) == {"val", "test", "shifted", "shift_average"}
    kept = sorted(p.name for p in (tmp_path / "sparse-phases" / "phase-2").glob("candidate-*"))
    assert kept == ["candidate-0.safetensors", "candidate-1.safetensors"]
    assert run("verify", out, "--json").json["verified"] is True
    # The soup is held against the dense model: the gain is the difference of their scores.
    scores = {name: row["scores"]["test"]["value"] for name, row in told["baselines"].items()}
    assert set(scores) == {"dense", "best-candidate"}
    gain = told["gain"]
    assert gain["model"] == str(kitchen.runs[0])
    expected = told["scores"]["test"]["value"] - scores["dense"]
    assert gain["splits"]["test"]["difference"] == pytest.approx(expected)
    assert "90.0 % of the prunable weights are zero" in gain["text"]
    # What averaging alone did stands beside it.
    assert any(note.startswith("averaging alone: ") for note in told["notes"])
    page = tmp_path / "page.html"
    assert run("report", out, "-o", page).code == 0
    assert gain["text"].partition(":")[0] in page.read_text()


def test_a_person_sees_phases_baselines_and_what_remains(run, kitchen, tmp_path: Path) -> None:
    result = run(
        "sparse", kitchen.runs[0], "--task", kitchen.task, "--cache", tmp_path / "cache",
        "--sparsity", "0.8", "-o", tmp_path / "s.safetensors", "--work", tmp_path / "work",
        *QUICK, "--baselines",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.split()[0] in ("GAIN", "NO", "WORSE:")
    for text in ("dense", "phase 2", "2 of 2", "imp-reprune", "ensemble", "non-zero parameters"):
        assert text in result.out
    assert (tmp_path / "work" / "phase-1" / "soup.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (["--sparsity", "90"], 1, "fraction"),
        (["--sparsity", "0.9", "--selector", "2:4"], 1, "makes a sparsity of 0.5"),
        (["--sparsity", "0.9", "--schedule", "lrw"], 1, "--original-epochs"),
        (["--sparsity", "0.9", "--exclude", "head.*"], 1, "no parameter has such a name"),
        (["--sparsity", "0.9", "--vary", "luck"], 2, "luck"),
        ([], 2, "sparsity"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_reason(
    run, kitchen, tmp_path: Path, options: list[str], code: int, hint: str
) -> None:
    arguments = ["sparse", kitchen.runs[0], "--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "-o", tmp_path / "x.safetensors", "--workers", "1", *options)
    assert result.code == code
    assert hint in result.err
    assert not (tmp_path / "x.safetensors").exists()


def test_an_output_that_exists_is_refused_before_anything_is_trained(
    run, kitchen, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    result = run("sparse", kitchen.runs[0], "--task", kitchen.task, "--sparsity", "0.9", "-o", out)
    assert result.code == 1
    assert "--force" in result.err
    assert out.read_bytes() == b"mine"
    assert not (tmp_path / "s-phases").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_base_of_another_precision_is_trained_from(
    dtype: torch.dtype, run, kitchen, tmp_path: Path
) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "sparse.safetensors"
    given = {f"module.{n}": v.to(dtype) for n, v in load_file(kitchen.runs[0]).items()}
    save_file(given, base)
    arguments = ["sparse", base, "--task", kitchen.task, "--cache", tmp_path / "cache"]
    found = run(*arguments, "--sparsity", "0.9", "-o", out, *QUICK, "--baselines", "--json")
    assert found.code == 0, found.err
    weights = load_file(out)
    zeros = sum(int((weights[name] == 0).sum()) for name in ("0.weight", "2.weight"))
    assert zeros == round(0.9 * (64 * 16 + 16 * 10))
    assert found.json["baselines"]["dense"]["scores"]["test"]["value"] > 0.5
    assert run("verify", out, "--json").json["verified"] is True
