"""Passes over factors give what passes over merged models give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.lora import save_adapter, save_base

from stockpot.errors import RecipeError
from stockpot.mixing.adapter_blocks import AdapterBlocks
from stockpot.mixing.device_blocks import ingredient_blocks
from stockpot.mixing.host_blocks import HostBlocks
from stockpot.mixing.ingredients import Ingredients

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

SORTS: dict[str, list[dict[str, Any]]] = {
    "low-rank": [{}, {"r": 2, "target_modules": ["lin", "emb", "conv"]}, {"use_rslora": True}],
    "DoRA and heads": [
        {"use_dora": True, "modules_to_save": ["head"]},
        {"modules_to_save": ["head"]},
        {"use_dora": True, "r": 3, "modules_to_save": ["head"]},
    ],
}


@pytest.fixture(params=SORTS)
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Ingredients:
    base = save_base(tmp_path / "base.safetensors", torch.float64)
    folders = [
        save_adapter(tmp_path / f"a{i}", i, dtype=torch.float64, **sort)
        for i, sort in enumerate(SORTS[request.param])
    ]
    return Ingredients(folders, base=base)


def test_they_agree_with_passes_over_full_models(given: Ingredients) -> None:
    names = list(given.specs)
    index = {name: int("lin" in name or "head" in name) for name in names}
    generator = torch.Generator().manual_seed(0)
    gradients = {
        name: torch.randn(given.specs[name].shape, generator=generator, dtype=torch.float64)
        for name in names
    }
    row = torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.1, 0.3]], dtype=torch.float64)
    found = ingredient_blocks(list(given), names, dtype=torch.float64)
    assert isinstance(found, AdapterBlocks)
    expected = HostBlocks(list(given), names, dtype=torch.float64)
    made, wanted = ({n: torch.empty_like(g) for n, g in gradients.items()} for _ in range(2))
    found.rebuild(row, index, made)
    expected.rebuild(row, index, wanted)
    for name in names:
        torch.testing.assert_close(made[name], wanted[name], rtol=0, atol=1e-12)
    one, other = (b.inner_products(gradients, index, 2) for b in (found, expected))
    torch.testing.assert_close(one.centred, other.centred, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        found.spreads(index, 2), expected.spreads(index, 2), rtol=1e-9, atol=1e-9
    )


def test_memory_that_does_not_hold_the_factors_is_refused(given: Ingredients) -> None:
    with pytest.raises(RecipeError, match="max-memory"):
        ingredient_blocks(list(given), list(given.specs), max_memory=100)
