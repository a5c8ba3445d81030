from __future__ import annotations

import numpy as np
import pytest

from stockpot.evaluate.optimism import selection_optimism


def test_one_candidate_is_not_flattered():
    values = np.random.default_rng(0).random((1, 500))
    assert abs(selection_optimism(values).value) < 0.003


def test_the_best_of_equals_is_flattered_and_more_so_among_more():
    rng = np.random.default_rng(0)
    values = (rng.random((40, 300)) < 0.8).astype(float)
    few, many = selection_optimism(values[:3]).value, selection_optimism(values).value
    assert 0 < few < many


def test_a_clear_winner_is_not_flattered():
    rng = np.random.default_rng(0)
    values = np.stack([rng.random(400) < 0.95, rng.random(400) < 0.5])
    assert abs(selection_optimism(values).value) < 0.005


def test_lower_is_better_has_the_same_sign():
    values = np.random.default_rng(0).random((20, 200))
    assert selection_optimism(values, higher_is_better=False).value > 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shape"):
        selection_optimism([1.0, 2.0])
