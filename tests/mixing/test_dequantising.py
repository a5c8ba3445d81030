"""Weights in fp8 with scales, read as the bfloat16 that they stand for, when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.errors import MismatchError
from stockpot.mixing import Ingredients, Mixture, Reconcile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def quantised(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The values in fp8, a scale for each block, and what both stand for."""
    rows, columns = weight.shape
    n = (-(-rows // block[0]), -(-columns // block[1]))
    scale = torch.rand(n, generator=torch.Generator().manual_seed(1)) + 0.5
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    small = (weight / spread).to(dtype)
    return small, scale, (small.double() * spread.double()).to(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("block", "configured"), [((128, 128), False), ((32, 64), True), ((1, 300), False)]
)
def test_blocks_are_multiplied_by_their_scales(
    block: tuple[int, int], configured: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    meant = []
    for i in range(2):
        weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(i))
        small, scale, real = quantised(weight, block, dtype)
        folder = tmp_path / f"run{i}"
        folder.mkdir()
        state = {"a.weight": small, "a.weight_scale_inv": scale, "norm.weight": torch.ones(3)}
        save_file(state, folder / "model.safetensors")
        method = {"quant_method": "fp8", "weight_block_size": list(block)}
        config = {"quantization_config": method} if configured else {}
        (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
        meant.append(real)
    paths = [tmp_path / "run0", tmp_path / "run1"]
    form = Reconcile(dequantise=True)
    stockpot.average(paths, reconcile=form).save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    assert set(soup) == {"a.weight", "norm.weight"}
    mean = (meant[0].double() + meant[1].double()) / 2
    assert torch.equal(soup["a.weight"].double(), mean.to(torch.bfloat16).double())
    config = json.loads((tmp_path / "soup" / "config.json").read_text())
    assert config == {"model_type": "x"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_byte_is_the_number_that_torch_reads(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(16, 16)
    state = {"w": codes, "w_scale": torch.tensor(1.0)}
    given = Ingredients([state], reconcile=Reconcile(dequantise=True))
    found, expected = given[0].read("w").float(), codes.float()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_any_piece_is_that_of_the_whole() -> None:
    small, scale, _ = quantised(torch.randn(40, 50), (128, 128), torch.float8_e4m3fn)
    state = {"w": small, "w_scale_inv": scale}
    given = Ingredients([state], reconcile=Reconcile(dequantise=True))
    whole = given[0].raw("w").tobytes()
    for start in range(0, len(whole), 371):
        for stop in (start + 1, start + 400, len(whole)):
            stop = min(stop, len(whole))
            assert given[0].part("w", start, stop).tobytes() == whole[start:stop]


def test_without_being_asked_they_are_refused_with_that_remedy() -> None:
    states = [
        {"w": torch.full((4, 4), i).to(torch.float8_e4m3fn), "w_scale": torch.ones(1)}
        for i in (1.0, 2.0)
    ]
    with pytest.raises(MismatchError, match="--dequantise"):
        Mixture(Ingredients(states)).state_dict()


def test_a_scale_of_another_shape_is_none() -> None:
    state = {"w": torch.zeros(5, 6, dtype=torch.float8_e4m3fn), "w_scale": torch.ones(2, 3)}
    given = Ingredients([state], reconcile=Reconcile(dequantise=True))
    assert set(given[0]) == {"w", "w_scale"}
