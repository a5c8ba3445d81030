from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot


@pytest.fixture
def soup(run, tmp_path: Path) -> Path:
    for i in range(3):
        tensors = {"w": torch.full((4, 3), i / 3), "bn.num_batches_tracked": torch.tensor(i)}
        (tmp_path / "runs").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "runs" / f"run-{i}.safetensors")
    out = tmp_path / "soup.safetensors"
    assert run("average", tmp_path / "runs", "-o", out).code == 0
    return out


def test_an_untouched_soup_is_verified(run, soup: Path) -> None:
    result = run("verify", soup, "--json")
    assert (result.code, result.json) == (0, {"verified": True, "differences": []})


@pytest.mark.parametrize("kind", ["soup.pt", "soup"])
def test_every_format_is_verified(run, soup: Path, kind: str) -> None:
    out = soup.with_name(kind)
    arguments = ["average", soup.parent / "runs", "-o", out, "--weights", "0.5,0,0.5"]
    assert run(*arguments, "--dtype", "f16").code == 0
    assert run("verify", out, "--json").json["verified"] is True


def test_a_changed_value_is_found_and_is_exit_1(run, soup: Path) -> None:
    tensors = load_file(soup)
    tensors["w"][2, 1] += 1e-6
    save_file(tensors, soup)
    result = run("verify", soup, "--json")
    assert result.code == 1
    assert result.json["verified"] is False
    assert result.json["differences"] == ["w differs in 1 bytes"]
    assert "w differs" in run("verify", soup).out


def test_ingredients_that_moved_are_found_by_content(run, soup: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "archive")
    lost = run("verify", soup, "--json")
    assert lost.code == 1
    assert lost.json["error"]["type"] == "VerificationError"
    assert len(lost.json["error"]["problems"]) == 3
    assert "--search" in lost.json["error"]["message"]
    assert run("verify", soup, "--search", tmp_path / "archive", "--json").json["verified"] is True


def test_what_has_no_record_cannot_be_verified(run, soup: Path) -> None:
    result = run("verify", soup.parent / "runs" / "run-0.safetensors")
    assert result.code == 1
    assert "no record" in result.err
    assert "there is nothing at" in run("verify", soup.parent / "other.safetensors").err


def test_what_a_record_names_elsewhere_is_fetched_only_if_allowed(
    run, soup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = soup.with_name(soup.name + ".stockpot.json")
    known = json.loads(record.read_text())
    here = known["ingredients"][1]["path"]
    known["ingredients"][1]["path"] = "hf:org/name"
    record.write_text(json.dumps(known))
    asked: list[str] = []
    there = stockpot.open(here)
    monkeypatch.setattr(
        "stockpot.formats.opening.open_hub", lambda name, *_: asked.append(name) or there
    )

    refused = run("verify", soup, "--json")
    assert refused.code == 1
    assert refused.json["error"]["type"] == "VerificationError"
    assert "hf:org/name is not on this machine" in refused.json["error"]["message"]
    assert "--allow-remote" in refused.json["error"]["message"]
    assert asked == []
    assert run("verify", soup, "--allow-remote", "--json").json["verified"] is True
    assert asked == ["hf:org/name"]
