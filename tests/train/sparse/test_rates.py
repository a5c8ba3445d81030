"""Sparsities over phases and along a ramp."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stockpot import RecipeError
from stockpot.train.sparse.rates import gradual_sparsity, n_zeros, phase_sparsities


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
