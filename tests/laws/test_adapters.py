"""Identities of adapters (METHODS §10): every recipe on them is the recipe on the merged models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.lora import (
    change_config,
    change_tensors,
    distance,
    mean,
    merged_by_hand,
    merged_by_peft,
    network,
    save_adapter,
    save_base,
    save_kohya,
)
from tests.formats.test_adapters import KINDS

import stockpot
from stockpot.errors import RecipeError
from stockpot.mixing.reconcile import Reconcile
from stockpot.mixing.rules.table import rule_from_text
from stockpot.recipes import ModelStock, Slerp, TaskArithmetic, Uniform, WiseFT

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

TYPES = [(torch.float32, 1e-6), (torch.float64, 1e-12)]
State = dict[str, torch.Tensor]


def far(found: Any, expected: State, most: float) -> dict[str, float]:
    """What differs by more than `most`, normwise."""
    assert set(found) == set(expected)
    distances = {name: distance(found[name], value) for name, value in expected.items()}
    return {name: d for name, d in distances.items() if d > most}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "most"), TYPES)
def test_a_mean_of_any_kind_is_that_of_the_merged_models(
    kind: str, dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base.safetensors", dtype)
    sorts = [KINDS[kind], {**KINDS[kind], "r": 3}, {"r": 2, "lora_alpha": 1}]
    folders = [save_adapter(tmp_path / f"a{i}", i, dtype=dtype, **s) for i, s in enumerate(sorts)]
    expected = mean([merged_by_peft(folder, dtype) for folder in folders])
    merged = stockpot.average(folders, base=base, reconcile=Reconcile(merge=True))
    merged.save(tmp_path / "merged.safetensors")
    assert far(load_file(tmp_path / "merged.safetensors"), expected, most) == {}
    if "DoRA" in kind:  # one adapter of it is not exact
        return
    stockpot.average(folders, base=base).save(tmp_path / "soup")
    assert far(merged_by_peft(tmp_path / "soup", dtype), expected, most) == {}
    for folder in (tmp_path / "soup", tmp_path / "merged.safetensors"):
        assert stockpot.verify(folder) == []


@pytest.mark.parametrize(("dtype", "most"), TYPES)
def test_files_of_kohya_with_alpha_average_to_the_mean_of_what_they_do(
    dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base.safetensors", dtype)
    paths = [
        save_kohya(tmp_path / f"k{i}.safetensors", i, rank=r, alpha=a)
        for i, (r, a) in enumerate([(4, 2.0), (2, 8.0), (3, None)])
    ]
    for path in paths:
        save_file({n: v.to(dtype) for n, v in load_file(path).items()}, path)
    start = network(dtype).state_dict()
    expected = mean([merged_by_hand(path, start) for path in paths])
    stockpot.average(paths, base=base).save(tmp_path / "soup.safetensors")
    assert far(merged_by_hand(tmp_path / "soup.safetensors", start), expected, most) == {}


@pytest.mark.parametrize(("dtype", "most"), TYPES)
def test_two_spellings_of_one_function_average_to_it(
    dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base.safetensors", dtype)
    one = save_adapter(tmp_path / "one", lora_alpha=4, dtype=dtype)
    other = Path(shutil.copytree(one, tmp_path / "other"))
    change_config(other, lora_alpha=16)
    change_tensors(other, lora_B_weight=lambda value: value / 4)
    stockpot.average([one, other], base=base).save(tmp_path / "soup")
    assert far(merged_by_peft(tmp_path / "soup", dtype), merged_by_peft(one, dtype), most) == {}


RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "average": (Uniform(), {}),
    "a point between": (WiseFT(alpha=0.3), {}),
    "task vectors": (TaskArithmetic(scale=0.4), {}),
    "against a task": (TaskArithmetic(scale=-0.5), {}),
    "ties": (TaskArithmetic(rule=rule_from_text("ties,keep=0.3"), scale=0.5), {"merge": True}),
    "breadcrumbs": (TaskArithmetic(rule=rule_from_text("breadcrumbs"), scale=0.5), {"merge": True}),
    "sce": (TaskArithmetic(rule=rule_from_text("sce"), scale=0.5), {"merge": True}),
    "model stock": (ModelStock(), {}),
    "slerp": (Slerp(), {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_on_adapters_is_the_recipe_on_the_merged_models(name: str, tmp_path: Path) -> None:
    recipe, form = RECIPES[name]
    base = save_base(tmp_path / "base.safetensors")
    sorts: list[dict[str, Any]] = [{}, {"r": 2}, {"r": 3, "target_modules": ["lin", "emb", "conv"]}]
    if name == "a point between":
        sorts = sorts[:1]
    folders, models = [], []
    for i, sort in enumerate(sorts):
        folders.append(save_adapter(tmp_path / f"a{i}", i, **sort))
        models.append(tmp_path / f"m{i}.safetensors")
        save_file({n: v.contiguous() for n, v in merged_by_peft(folders[i]).items()}, models[i])
    expected = recipe.cook(models, base=base).mixture.state_dict()
    soup = recipe.cook(folders, base=base)
    assert far(soup.mixture.state_dict(), expected, 1e-5) == {}
    soup.save(tmp_path / "soup")
    written = tmp_path / "soup"
    is_adapter = (written / "adapter_config.json").exists()
    found = merged_by_peft(written) if is_adapter else stockpot.open(written).state_dict()
    assert is_adapter is not bool(form)
    assert far(found, expected, 1e-5) == {}
    assert stockpot.verify(written) == []


@pytest.mark.parametrize("rule", ["iso-c", "tsv-m"])
def test_rules_that_take_all_directions_alike_are_refused(rule: str, tmp_path: Path) -> None:
    """What rounding leaves where an adapter moves nothing would decide."""
    base = save_base(tmp_path / "base.safetensors")
    folders = [save_adapter(tmp_path / f"a{i}", i) for i in range(2)]
    recipe = TaskArithmetic(rule=rule_from_text(rule), scale=0.5)
    with pytest.raises(RecipeError, match=rf"{rule} takes all directions.*such as ties"):
        recipe.cook(folders, base=base)
