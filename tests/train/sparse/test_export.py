"""Sparse weights in the forms of torch."""

from __future__ import annotations

import pytest
import torch
from tests.formats.pruning import pruned
from torch import nn
from torch.nn.utils import prune
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from stockpot.errors import RecipeError
from stockpot.mixing.ingredients import Ingredients
from stockpot.train.sparse.export import (
    prune_keys,
    semi_structured_problems,
    to_csr,
    to_semi_structured,
)
from stockpot.train.sparse.selectors import SemiStructured


def two_of_four(rows: int = 64, columns: int = 128) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    mask = SemiStructured().select({"w": weight}, 0.5)
    return torch.from_numpy(mask.applied("w", weight)).half()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_matrices_multiply_as_the_dense_ones() -> None:
    params = {
        "conv": pruned(8, 3, 3, 3),
        "fc": pruned(20, 30),
        "dense": torch.ones(4, 4),
        "bias": torch.zeros(8),
    }
    found = to_csr(params)
    assert [found[name].layout for name in params] == [
        torch.sparse_csr, torch.sparse_csr, torch.strided, torch.strided,
    ]  # fmt: skip
    x = torch.randn(30, 5)
    assert torch.allclose(found["fc"] @ x, params["fc"] @ x)
    assert torch.equal(found["conv"].to_dense(), params["conv"].flatten(1))
    assert found["fc"].values().numel() == 60


def test_prune_keys_load_into_a_module_and_come_back() -> None:
    params = {"weight": pruned(6, 10), "bias": torch.zeros(6)}
    state = prune_keys(params)
    layer = nn.Linear(10, 6)
    prune.identity(layer, "weight")
    layer.load_state_dict(state)
    x = torch.randn(2, 10)
    assert torch.equal(layer(x), nn.functional.linear(x, params["weight"], params["bias"]))
    back = Ingredients([layer])[0]
    assert torch.equal(back.read("weight"), params["weight"])


def test_only_given_names_become_prune_keys_and_unknown_ones_are_refused() -> None:
    params = {"a": pruned(4, 5), "b": pruned(4, 5)}
    assert sorted(prune_keys(params, ["b"])) == ["a", "b_mask", "b_orig"]
    with pytest.raises(RecipeError, match="there is no c"):
        prune_keys(params, ["c"])


def test_two_of_four_has_the_layout_of_torch() -> None:
    weight = two_of_four()
    assert semi_structured_problems(weight) == ()
    # What its kernels are given: half of the values, and two bits for the place of each.
    stored = SparseSemiStructuredTensorCUTLASS
    limits = stored._DTYPE_SHAPE_CONSTRAINTS[torch.float16]
    assert weight.shape[0] % limits.sparse_min_rows == 0
    assert weight.shape[1] % limits.sparse_min_cols == 0
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    values, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert values.shape == (64, 64)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, meta), weight)


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (torch.zeros(4, 3, 3, 3), "4 dimensions"),
        (torch.zeros(32, 64), "torch.float32"),
        (torch.zeros(30, 64).half(), "30 rows"),
        (torch.zeros(32, 62).half(), "62 columns"),
        (torch.ones(32, 64).bfloat16(), "512 groups of four"),
    ],
)
def test_what_does_not_fit_is_said(weight: torch.Tensor, problem: str) -> None:
    assert problem in " ".join(semi_structured_problems(weight))


def test_converting_needs_a_fitting_tensor_and_a_device() -> None:
    with pytest.raises(RecipeError, match="no tensor is a 2:4 matrix"):
        to_semi_structured({"w": torch.ones(32, 64)})
    with pytest.raises(RecipeError, match="w is on cpu"):
        to_semi_structured({"w": two_of_four()})
