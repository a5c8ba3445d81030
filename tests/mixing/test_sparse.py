"""Pruned ingredients: equal masks are kept bit for bit, different ones are refused or redone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.formats.pruning import pruned

from stockpot.errors import MaskMismatchError
from stockpot.mixing import Coefficients, Mixture, NonzeroMask, shared_mask
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.mask import Mask

Tensors = dict[str, torch.Tensor]


def retrained(weight: torch.Tensor, seed: int, zero: float = 0.0) -> torch.Tensor:
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    moved = weight.float() + 0.01 * noise
    return torch.where(weight != 0, moved, torch.tensor(zero)).to(weight.dtype)


def copies(n: int = 3, zero: float = 0.0, dtype: torch.dtype = torch.float32) -> list[Tensors]:
    """Models retrained with one mask; `zero` is what stands where it has none."""
    a, b = pruned(40, 50).to(dtype), pruned(8, 4, 3, 3, sparsity=0.5).to(dtype)
    return [
        {
            "a": retrained(a, i, zero),
            "b": retrained(b, 10 + i, zero),
            "bias": torch.ones(40, dtype=dtype),
        }
        for i in range(n)
    ]


def masked(ingredients: Ingredients, coefficients: Coefficients | None = None) -> Mixture:
    given, shared = shared_mask(ingredients)
    assert shared is not None
    plain = Mixture(given, coefficients)
    return Mixture(given, coefficients, mask=shared.mask_of(plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_one_mask_in_is_the_same_mask_out_with_plus_zero(zero: float, dtype: torch.dtype) -> None:
    given = copies(zero=zero, dtype=dtype)
    soup = masked(Ingredients(given))
    for name in ("a", "b"):
        found = soup.read(name)
        assert torch.equal(found == 0, given[0][name] == 0)
        assert not torch.signbit(found[found == 0]).any()
        assert torch.equal(found, Mixture(Ingredients(given)).read(name))


def test_the_mask_is_that_of_the_values(tmp_path) -> None:
    given = copies()
    soup = masked(Ingredients(given))
    whole = Mask.of_nonzero({name: given[0][name] for name in ("b", "a")})
    assert soup.mask is not None
    assert soup.mask.fingerprint == whole.fingerprint
    assert soup.mask.sparsity == whole.sparsity
    assert list(soup.mask) == ["a", "b"]
    assert "bias" not in soup.mask


def test_dense_ingredients_come_back_untouched() -> None:
    given = Ingredients([{"a": pruned(9, 9, sparsity=0)} for _ in range(2)])
    assert shared_mask(given) == (given, None)


def test_a_mixture_of_one_ingredient_is_that_ingredient() -> None:
    given = Ingredients(copies(zero=-0.0))
    _, shared = shared_mask(given)
    assert shared is not None
    assert shared.mask_of(Mixture(given, Coefficients.per_model([0, 1, 0]))) is None


def test_different_masks_are_refused_with_what_would_remain() -> None:
    given = [{"a": pruned(40, 50, seed=i)} for i in (0, 1)]
    union = (given[0]["a"] != 0) | (given[1]["a"] != 0)
    remaining = 100 * (1 - union.float().mean().item())
    with pytest.raises(MaskMismatchError, match="stockpot sparse") as caught:
        shared_mask(Ingredients(given))
    assert f"{remaining:.1f} % of the weights would be zero" in str(caught.value)
    assert [p.found for p in caught.value.problems] == [
        "90.00 % zero, mask 1", "90.00 % zero, mask 2",
    ]  # fmt: skip


def test_one_weight_that_moved_is_seen_and_one_of_many_that_vanished_is_not() -> None:
    one, two = copies(2)
    two["a"][tuple(torch.nonzero(two["a"] == 0)[0])] = 5.0
    with pytest.raises(MaskMismatchError):
        shared_mask(Ingredients([one, two]))
    big = pruned(200, 300)
    where = tuple(torch.nonzero(big)[0])
    vanished = big.clone()
    vanished[where] = 0.0
    _, shared = shared_mask(Ingredients([{"a": big}, {"a": vanished}]))
    assert shared is not None
    assert "and 1 more of them in some ingredients" in shared.note
    assert masked(Ingredients([{"a": big}, {"a": vanished}])).read("a")[where] == big[where] / 2


@pytest.mark.parametrize("other", ["dense", "sparser"])
def test_masks_that_contain_one_another_differ(other: str) -> None:
    dense = {"a": pruned(40, 50, sparsity=0.0 if other == "dense" else 0.5)}
    with pytest.raises(MaskMismatchError):
        shared_mask(Ingredients([{"a": pruned(40, 50)}, dense]))


def test_the_largest_group_with_one_mask_can_be_kept() -> None:
    same, odd = copies(2), {"a": pruned(40, 50, seed=9), "b": copies(1)[0]["b"]}
    given = [same[0], {**odd, "bias": torch.ones(40)}, same[1]]
    kept, shared = shared_mask(Ingredients(given, on_mismatch="leave-out"))
    assert [one.path for one in kept] == ["<memory 0>", "<memory 2>"]
    assert [left.path for left in kept.left_out] == ["<memory 1>"]
    assert shared is not None
    assert "one mask" in shared.note


def test_nothing_is_unpacked_of_tensors_that_are_not_masked() -> None:
    mask = NonzeroMask(Ingredients(copies()), ["a"])
    assert "bias" not in mask
    assert mask.kept("a").shape == (40, 50)
    assert np.count_nonzero(mask.kept("a")) == 200
