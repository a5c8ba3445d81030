"""Coefficients that need not sum to one."""

from __future__ import annotations

import pytest

from stockpot.errors import RecipeError
from stockpot.mixing.coefficients import Coefficients


def test_freely_learned_coefficients_may_have_any_sum_and_keep_it_in_their_record() -> None:
    free = Coefficients.per_group({"a": [0.5, 0.7]}, group_of={"w": "a"}, any_sum=True)
    assert free.for_tensor("w") == (0.5, 0.7)
    assert Coefficients.from_json(free.to_json()) == free
    with pytest.raises(RecipeError, match="not finite"):
        Coefficients.per_model([float("nan"), 1.0], any_sum=True)
