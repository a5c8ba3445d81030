"""Adapters are judged by what they add to the base, exactly, in whatever type that is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.formats.lora import change_tensors, merged_by_peft, network, save_adapter, save_base

import stockpot
from stockpot.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

SORTS: list[dict[str, Any]] = [
    {},
    {"r": 2, "lora_alpha": 7, "use_rslora": True, "modules_to_save": ["head"]},
    {"use_dora": True, "target_modules": ["lin", "emb", "conv"]},
]


def moves(folder: Path) -> dict[str, torch.Tensor]:
    start = network(torch.float64).state_dict()
    return {n: value - start[n] for n, value in merged_by_peft(folder, torch.float64).items()}


def inner(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[n] * other[n]).sum()) for n in one)


def test_sizes_and_angles_are_those_of_dense_differences(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base.safetensors", torch.float64)
    folders = [
        save_adapter(tmp_path / f"a{i}", i, dtype=torch.float64, **sort)
        for i, sort in enumerate(SORTS)
    ]
    found = stockpot.inspect(folders, base=base)
    assert found.compatible
    assert found.moves is not None
    every, start = [moves(folder) for folder in folders], network(torch.float64).state_dict()
    whole = math.sqrt(sum(float(value.square().sum()) for value in start.values()))
    for one, move, summary in zip(every, found.moves.ingredients, found.adapters, strict=True):
        assert move.distance == pytest.approx(math.sqrt(inner(one, one)) / whole)
        for name, size in summary.modules.items():
            assert size == pytest.approx(float(one[name].norm() / start[name].norm()))
    angles = {(angle.a, angle.b): angle.degrees for angle in found.moves.angles}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        product = inner(every[i], every[j])
        cosine = product / math.sqrt(inner(every[i], every[i]) * inner(every[j], every[j]))
        degrees = angles[str(folders[i]), str(folders[j])]
        assert degrees == pytest.approx(math.degrees(math.acos(cosine)))
    assert [one.kind for one in found.adapters] == ["LoRA", "rsLoRA", "DoRA"]
    assert [list(one.ranks) for one in found.adapters] == [["4"], ["2"], ["4"]]
    assert found.adapters[1].whole == ("head.bias", "head.weight")


def test_what_a_half_precision_base_would_round_away_is_seen(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in network().state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    folder = save_adapter(tmp_path / "a")
    change_tensors(folder, lora_B_weight=lambda value: 1e-6 * value)
    (found,) = stockpot.inspect([folder], base=tmp_path / "base.safetensors").adapters
    assert found.size is not None
    assert 1e-7 < found.size < 1e-4


def test_the_command_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = save_base(tmp_path / "base.safetensors"), save_adapter(tmp_path / "a")
    assert main(["inspect", str(folder), "--base", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "LoRA" in shown
    assert "lin square" in shown
    assert main(["inspect", str(folder), "--base", str(base), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["adapters"]
    assert (one["ranks"], one["scales"]) == ({"4": 2}, {"3": 2})


def test_a_weight_that_is_no_number_is_a_problem_of_its_adapter(tmp_path: Path) -> None:
    base, folder = save_base(tmp_path / "base.safetensors"), save_adapter(tmp_path / "a")
    change_tensors(folder, lin_lora_B_weight=lambda value: value * float("nan"))
    found = stockpot.inspect([folder], base=base)
    assert found.compatible is False
    assert [(p.ingredient, p.tensor) for p in found.problems] == [(str(folder), "lin.weight")]
