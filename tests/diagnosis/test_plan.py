from __future__ import annotations

import pytest

from stockpot.diagnosis.plan import Part, share_out
from stockpot.errors import RecipeError

PARTS = [
    Part("lines", 9, 54),
    Part("scores", 13, 13, needed=True),
    Part("plane", 17, 82),
    Part("nothing", 0, 0),
]


@pytest.mark.parametrize("budget", [13, 14, 22, 38, 39, 40, 100, 10_000])
def test_shares_stay_within_the_budget_and_between_least_and_wish(budget: int) -> None:
    shares = share_out(budget, PARTS)
    assert sum(shares.values()) <= budget
    for part in PARTS:
        assert shares[part.name] == 0 or part.least <= shares[part.name] <= part.wish
    assert shares["scores"] == 13


def test_everything_gets_its_least_before_anything_gets_more() -> None:
    assert share_out(40, PARTS) == {"lines": 10, "scores": 13, "plane": 17, "nothing": 0}
    assert share_out(38, PARTS) == {"lines": 25, "scores": 13, "plane": 0, "nothing": 0}


def test_a_large_budget_is_not_used_up_and_none_is_no_limit() -> None:
    wishes = {"lines": 54, "scores": 13, "plane": 82, "nothing": 0}
    assert share_out(10_000, PARTS) == share_out(None, PARTS) == wishes


def test_what_is_needed_is_named_when_the_budget_does_not_suffice() -> None:
    with pytest.raises(RecipeError, match=r"12 .* for scores; expected at least 13 \(--budget 13"):
        share_out(12, PARTS)
