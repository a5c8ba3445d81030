"""Selectors: exact counts, nested masks, deterministic ties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from stockpot import RecipeError
from stockpot.mixing.mask import Mask
from stockpot.train.sparse.prunable import Groups, Part
from stockpot.train.sparse.selectors import (
    Magnitude,
    Random,
    Selector,
    SemiStructured,
    Structured,
    UniformMagnitude,
    gradual_sparsity,
    n_zeros,
    parse_selector,
    phase_sparsities,
)

UNSTRUCTURED: list[Selector] = [Magnitude(), UniformMagnitude(), Random(3)]


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"conv": (8, 4, 3, 3), "fc": (16, 72), "head": (10, 16)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.333, 0.5, 0.9, 0.98, 0.9999])
def test_global_selectors_make_the_target_to_one_weight(sparsity: float) -> None:
    values = weights()
    total = sum(v.size for v in values.values())
    for selector in (Magnitude(), Random(0)):
        assert selector.select(values, sparsity).n_zeros == n_zeros(sparsity, total)


def test_uniform_makes_the_target_in_every_layer_to_one_weight() -> None:
    values = weights()
    mask = UniformMagnitude().select(values, 0.77)
    for name, array in values.items():
        assert (~mask.kept(name)).sum() == n_zeros(0.77, array.size)


def test_magnitude_prunes_no_weight_that_is_larger_than_one_it_keeps() -> None:
    values = weights()
    mask = Magnitude().select(values, 0.8)
    sizes = np.concatenate([np.abs(v).reshape(-1) for v in values.values()])
    kept = np.concatenate([mask.kept(n).reshape(-1) for n in values])
    assert sizes[~kept].max() <= sizes[kept].min()


@pytest.mark.parametrize("selector", UNSTRUCTURED)
def test_masks_are_nested_over_phases_though_the_weights_change(selector: Selector) -> None:
    previous = None
    for phase, sparsity in enumerate(phase_sparsities(0.95, 4)):
        values = weights(seed=phase)
        if previous is not None:  # retraining leaves zeros where the mask has them
            values = {n: previous.applied(n, v) for n, v in values.items()}
        mask = selector.select(values, sparsity, previous)
        assert previous is None or mask <= previous
        previous = mask


@pytest.mark.parametrize("selector", [Magnitude(), UniformMagnitude()])
def test_of_equal_weights_the_first_are_pruned(selector: Selector) -> None:
    mask = selector.select({"w": np.array([2.0, -1.0, 1.0, -1.0, 1.0])}, 0.4)
    assert mask.kept("w").tolist() == [True, False, False, True, True]


def test_previous_zeros_come_before_other_zeros() -> None:
    previous = Mask({"w": np.array([True, True, True, False])})
    mask = Magnitude().select({"w": np.zeros(4)}, 0.5, previous)
    assert mask.kept("w").tolist() == [False, True, True, False]


@pytest.mark.parametrize("selector", UNSTRUCTURED)
def test_sparsity_never_falls(selector: Selector) -> None:
    values = weights()
    with pytest.raises(RecipeError, match="can only rise"):
        selector.select(values, 0.3, selector.select(values, 0.5))


def test_the_number_type_does_not_matter() -> None:
    values = {n: torch.from_numpy(v).bfloat16() for n, v in weights().items()}
    wide = {n: v.float() for n, v in values.items()}
    assert Magnitude().select(values, 0.7) == Magnitude().select(wide, 0.7)


def test_random_masks_depend_on_the_seed_alone() -> None:
    assert Random(1).select(weights(0), 0.5) == Random(1).select(weights(1), 0.5)
    assert Random(1).select(weights(), 0.5) != Random(2).select(weights(), 0.5)


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    values = weights()
    values["fc"][0, 0] = np.nan
    with pytest.raises(RecipeError, match="fc: NaN"):
        Magnitude().select(values, 0.5)


def test_structured_masks_hold_whole_groups_and_miss_the_target_by_at_most_one() -> None:
    values = weights()
    total = sum(v.size for v in values.values())
    groups = (Groups(8, (Part("conv", 0),)), Groups(16, (Part("fc", 0), Part("head", 1))))
    for sparsity in (0.1, 0.5, 0.8):
        mask = Structured(groups).select(values, sparsity)
        largest = 72 + 10
        assert abs(mask.n_zeros - sparsity * total) <= largest
        rows = mask.kept("fc")
        assert (rows.all(1) | ~rows.any(1)).all()
        assert np.array_equal(mask.kept("head")[0], rows[:, 0])


def test_structured_prunes_the_weakest_filter_first() -> None:
    values = {"conv": np.stack([np.full((2, 3, 3), s) for s in (3.0, 1.0, 2.0, 4.0)])}
    mask = Structured().select(values, 0.5)
    assert mask.kept("conv").any((1, 2, 3)).tolist() == [True, False, False, True]


def test_structured_masks_are_nested() -> None:
    values = weights()
    before = Structured().select(values, 0.3)
    after = Structured().select(weights(1), 0.6, before)
    assert after <= before


def test_structured_refuses_what_it_cannot_reach_and_says_how_far_it_gets() -> None:
    values = {"a": np.ones((2, 4)), "b": np.ones((2, 4))}
    with pytest.raises(RecipeError, match=r"reaches a sparsity of 0\.5"):
        Structured((Groups(2, (Part("a", 0),)), Groups(2, (Part("b", 0),)))).select(values, 0.99)


def test_semi_structured_masks_keep_the_largest_two_of_every_four_inputs() -> None:
    values = {k: v for k, v in weights().items() if k != "head"}
    mask = SemiStructured().select(values, 0.5)
    assert mask.sparsity == 0.5
    blocks = np.moveaxis(mask.kept("conv"), 1, -1).reshape(-1, 4)
    sizes = np.abs(np.moveaxis(values["conv"], 1, -1)).reshape(-1, 4)
    assert (blocks.sum(1) == 2).all()
    assert np.where(blocks, np.inf, sizes).min(1).max() < np.inf
    assert (np.where(blocks, sizes, np.inf).min(1) >= np.where(blocks, 0, sizes).max(1)).all()


def test_tensors_that_do_not_divide_stay_dense_and_outside_the_mask() -> None:
    mask = SemiStructured().select({"a": np.ones((2, 8)), "b": np.ones((2, 3))}, 0.5)
    assert list(mask) == ["a"]
    with pytest.raises(RecipeError, match="divide by 4"):
        SemiStructured().select({"b": np.ones((2, 3))}, 0.5)


def test_semi_structured_wants_its_own_sparsity() -> None:
    with pytest.raises(RecipeError, match=r"its sparsity is 0\.5, and 0\.9 was asked for"):
        SemiStructured().select(weights(), 0.9)


def test_ties_of_a_pattern_and_previous_zeros_are_settled_by_index() -> None:
    values = {"w": np.ones((1, 4))}
    assert SemiStructured().select(values, 0.5).kept("w").tolist() == [[False, False, True, True]]
    previous = Mask({"w": np.array([[True, True, True, False]])})
    again = SemiStructured().select(values, 0.5, previous)
    assert again.kept("w").tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("text", ["magnitude", "uniform", "random", "structured", "2:4", "1:8"])
def test_selectors_have_the_names_by_which_they_are_parsed(text: str) -> None:
    assert parse_selector(text).name == text


@pytest.mark.parametrize("text", ["l1", "4:2", "2:", "a:b", "0:4"])
def test_other_names_are_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(RecipeError, match="expected"):
        parse_selector(text)


def test_every_phase_prunes_the_same_share_of_what_remains() -> None:
    rates = phase_sparsities(0.9, 3)
    remaining = [1.0, *(1 - s for s in rates)]
    shares = [after / before for before, after in pairwise(remaining)]
    assert shares == pytest.approx([shares[0]] * 3)
    assert [round(s, 3) for s in rates] == [0.536, 0.785, 0.9]


def test_the_last_phase_reaches_the_very_target_and_one_phase_is_one_shot() -> None:
    assert phase_sparsities(0.98, 7)[-1] == 0.98
    assert phase_sparsities(0.98, 1) == (0.98,)


@pytest.mark.parametrize(("sparsity", "n"), [(1.0, 3), (-0.1, 3), (0.5, 0), (float("nan"), 1)])
def test_impossible_targets_are_refused(sparsity: float, n: int) -> None:
    with pytest.raises(RecipeError, match="expected"):
        phase_sparsities(sparsity, n)


def test_targets_are_counts_over_the_whole() -> None:
    assert n_zeros(0.98, 159_712) == round(0.98 * 159_712)


def test_the_ramp_begins_dense_ends_at_the_target_and_never_falls() -> None:
    found = [gradual_sparsity(0.9, i / 20) for i in range(21)]
    assert found[0] == 0
    assert found[-1] == 0.9
    assert found == sorted(found)
