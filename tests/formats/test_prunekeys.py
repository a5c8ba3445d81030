"""Checkpoints of models that torch.nn.utils.prune is still pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import stockpot.formats as cp
from stockpot.errors import CheckpointFormatError
from stockpot.formats.encodings import pruned_names
from stockpot.mixing import Ingredients
from stockpot.testing import READER_CHECKS


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 5)).to(dtype)
    for module in (model[0], model[2]):
        prune.l1_unstructured(module, "weight", amount=0.75)
    return model


def expected(model: nn.Module) -> dict[str, torch.Tensor]:
    """What `prune.remove` leaves, with +0.0 where it leaves -0.0."""
    for module in (model[0], model[2]):
        prune.remove(module, "weight")
    return {name: value.detach() + 0.0 for name, value in model.state_dict().items()}


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_reader_conforms(check: Any, suffix: str, tmp_path: Path) -> None:
    model, path = network(), tmp_path / f"m.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    check(lambda: cp.open(path), expected(model))


def test_it_is_said_and_zeros_have_no_sign(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "m.pt")
    found = cp.open(tmp_path / "m.pt")
    assert found.notes == (
        "2 tensors pruned with torch.nn.utils.prune were merged from 0.weight_orig and _mask, ...",
    )
    weight = found.read("2.weight")
    assert (weight == 0).float().mean() == 0.75
    assert not torch.signbit(weight[weight == 0]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_floating_type_is_merged(dtype: torch.dtype) -> None:
    model = network(dtype)
    found = Ingredients([model])[0]
    for name, value in expected(network(dtype)).items():
        assert torch.equal(found.read(name), value), name


def test_a_pruned_and_a_finished_model_can_be_averaged() -> None:
    given = Ingredients([network(), expected(network())])
    assert given[0].fingerprint == given[1].fingerprint


def test_pairs_by_chance_are_left_alone() -> None:
    one = torch.ones(3)
    for state in (
        {"w_orig": one, "b": one},
        {"w_orig": one, "w_mask": one, "w": one},
        {"w_orig": one, "w_mask": torch.ones(2)},
    ):
        assert pruned_names(cp.from_state_dict(state)) == []


@pytest.mark.parametrize("values", [[1.0, 0.5, 0.0], [2.0, 2.0, 0.0], [1.0, float("nan"), 0.0]])
def test_a_mask_of_other_values_is_refused(values: list[float]) -> None:
    found = Ingredients([{"w_orig": torch.ones(3), "w_mask": torch.tensor(values)}])[0]
    with pytest.raises(CheckpointFormatError, match="w_mask holds other values than 0 and 1"):
        found.read("w")
