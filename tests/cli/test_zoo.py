from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def test_models_of_no_common_start_become_one(run, kitchen, tmp_path: Path) -> None:
    own = load_file(kitchen.runs[0])
    torch.manual_seed(0)
    for i in range(2):
        other = {
            name: v if not v.is_floating_point() else v[torch.randperm(len(v))]
            for name, v in own.items()
        }
        save_file(other, tmp_path / f"{i}.safetensors")
    models = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    out = tmp_path / "adapted.safetensors"
    arguments = ["zoo", *models, "--task", kitchen.task, "--cache", tmp_path / "cache",
                 "--epochs", "2", "--device", "cpu", "-o", out]  # fmt: skip
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    told = result.json
    assert told["recipe"]["name"] == "zoo"
    assert {"gates", "models", "epochs", "scores", "fresh"} <= set(told)
    assert set(load_file(out)) == set(own)
    assert {n: v.shape for n, v in load_file(out).items()} == {n: v.shape for n, v in own.items()}
    assert run("verify", out, "--json").json["verified"] is True
    assert run("report", out, "-o", tmp_path / "page.html").code == 0
    # The output exists now; another name needs no training.
    assert run(*arguments).code == 1
    again = run(*arguments[:-1], tmp_path / "other.safetensors", "--work",
                tmp_path / "adapted-zoo")  # fmt: skip
    assert again.code == 0, again.err
    assert "gates" in again.out
    assert (tmp_path / "other.safetensors").read_bytes() == out.read_bytes()
    assert run("zoo", models[0], "--task", kitchen.task, "-o", tmp_path / "x.pt").code == 1
