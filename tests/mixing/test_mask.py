"""Masks: what they keep, how they combine, and what they say of weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stockpot import Ingredients, MaskMismatchError, Mixture
from stockpot.mixing.mask import Mask, NonzeroMask


def random_mask(seed: int, share: float = 0.5) -> Mask:
    rng = np.random.default_rng(seed)
    return Mask({"a": rng.random((3, 5)) < share, "b": rng.random(7) < share})


def test_what_is_packed_comes_back() -> None:
    kept = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    mask = Mask({"w": kept})
    assert np.array_equal(mask.kept("w"), kept)
    assert mask.n_kept == kept.sum()
    assert mask.n_zeros + mask.n_kept == mask.n_weights == kept.size
    assert mask.sparsity == 1 - kept.mean()
    assert mask.sparsities == {"w": mask.sparsity}


def test_what_is_read_is_not_the_masks_own_memory() -> None:
    mask = random_mask(0)
    mask.kept("a")[...] = False
    assert mask == random_mask(0)


def test_equality_is_of_content_and_so_is_the_fingerprint() -> None:
    one, same, other = random_mask(0), random_mask(0), random_mask(1)
    assert one == same
    assert hash(one) == hash(same)
    assert one.fingerprint == same.fingerprint
    assert one != other
    assert one.fingerprint != other.fingerprint
    assert one != "a mask"
    turned = Mask({"a": one.kept("a").T, "b": one.kept("b")})
    assert turned.fingerprint != one.fingerprint
    swapped = Mask({"b": one.kept("b"), "a": one.kept("a")})
    assert swapped == one
    assert swapped.fingerprint == one.fingerprint


def test_a_mask_survives_pickling_and_copying() -> None:
    mask = random_mask(0)
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert copy.deepcopy(mask) == mask


def test_intersection_keeps_what_both_keep_and_union_what_one_does() -> None:
    one, other = random_mask(0), random_mask(1)
    for name in one:
        assert np.array_equal((one & other).kept(name), one.kept(name) & other.kept(name))
        assert np.array_equal((one | other).kept(name), one.kept(name) | other.kept(name))
    assert (one & other) <= one <= (one | other)
    assert not one <= (one & other)


def test_masks_of_other_tensors_are_refused_naming_each() -> None:
    one = random_mask(0)
    other = Mask({"a": np.ones((5, 3), np.bool_), "c": np.ones(2, np.bool_)})
    with pytest.raises(MaskMismatchError) as caught:
        one | other
    assert {problem.tensor for problem in caught.value.problems} == {"a", "b", "c"}


def test_tensors_that_both_masks_have_are_no_problem_of_theirs() -> None:
    one = random_mask(0)
    other = Mask({"a": one.kept("a"), "b": np.ones(8, np.bool_)})
    with pytest.raises(MaskMismatchError, match=r"\(1\)") as caught:
        one & other
    (problem,) = caught.value.problems
    assert (problem.tensor, problem.found, problem.expected) == ("b", "(8,)", "(7,)")


def test_zeros_of_either_sign_are_not_kept() -> None:
    mask = Mask.of_nonzero({"w": torch.tensor([0.0, -0.0, 1e-30], dtype=torch.bfloat16)})
    assert mask.kept("w").tolist() == [False, False, True]


def test_applied_values_have_positive_zeros_and_dense_tensors_stay() -> None:
    mask = Mask({"w": np.array([True, False])})
    found = mask.applied("w", torch.tensor([-1.0, -2.0]))
    assert found.tolist() == [-1.0, 0.0]
    assert not np.signbit(found[1])
    assert mask.applied("bias", np.array([3.0])).tolist() == [3.0]


def test_weights_that_break_the_mask_are_counted() -> None:
    mask = Mask({"a": np.array([True, False]), "b": np.array([False, False])})
    assert mask.broken_by({"a": np.array([0.0, 0.0]), "b": np.array([0.0, -0.0])}) == {}
    assert mask.broken_by({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}) == {
        "a": 1,
        "b": 2,
    }


def test_a_mask_made_as_it_is_asked_for_says_what_the_mask_of_the_same_weights_says() -> None:
    rng = np.random.default_rng(0)
    models = [
        {"a": rng.normal(size=(3, 5)) * (rng.random((3, 5)) < 0.4), "b": np.eye(4)[i]}
        for i in (0, 1)
    ]
    lazy = NonzeroMask(Ingredients(models), ["b", "a"])
    whole = Mask.of_nonzero(models[0]) | Mask.of_nonzero(models[1])
    assert lazy.sparsity == pytest.approx(whole.sparsity)
    assert 0 < lazy.sparsity < 1
    assert lazy.fingerprint == whole.fingerprint
    for name in ("a", "b"):
        assert np.array_equal(lazy.kept(name), whole.kept(name))


def test_no_tensors_have_no_sparsity_and_a_dense_mask_has_none() -> None:
    assert Mask({}).sparsity == 0
    dense = Mask.dense({"w": (2, 3), "s": ()})
    assert dense.n_kept == 7
    assert dense.sparsity == 0


def test_a_mixture_with_a_mask_saves_exact_zeros_also_under_a_tied_name(tmp_path: Path) -> None:
    shared = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    states = [{"a.weight": w, "b.weight": w} for w in (shared, shared - 1)]
    mask = Mask({"a.weight": np.eye(4, dtype=np.bool_)})
    mixture = Mixture(Ingredients(states), mask=mask)
    mean = (shared.double() + (shared - 1).double()).div(2).float()
    expected = torch.where(torch.eye(4, dtype=torch.bool), mean, 0.0)
    assert torch.equal(mixture.read("a.weight"), expected)
    assert torch.equal(mixture.read("b.weight"), expected)
    mixture.save(tmp_path / "soup.safetensors")
    assert torch.equal(load_file(tmp_path / "soup.safetensors")["a.weight"], expected)
    assert not expected.signbit()[expected == 0].any()
    assert mixture.key != Mixture(Ingredients(states)).key
