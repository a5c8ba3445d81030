"""Options that callers in Python give are refused as the command line refuses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stockpot
from stockpot.errors import RecipeError


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (stockpot.Greedy, {"accept": "gte"}, "accept is 'gte'; expected 'ge' or 'gt'"),
        (stockpot.Greedy, {"explain": "no"}, "explain is 'no'; expected True or False"),
        (stockpot.Greedy, {"min_gain": "0.1"}, "min_gain is '0.1'; expected a number"),
        (stockpot.Greedy, {"random_orders": -1}, "random_orders is -1; expected 0 or more"),
        (stockpot.Greedy, {"seed": 0.5}, "seed is 0.5; expected a whole number"),
        (stockpot.Pruned, {"optimism": "all"}, "optimism is 'all'; expected 'scored' or 'full'"),
        (stockpot.WiseFT, {"alpha": "half"}, "alpha is 'half'; expected a number or None"),
        (stockpot.WiseFT, {"alpha": True}, "alpha is True; expected a number or None"),
        (stockpot.WiseFT, {"by": "block"}, "by is 'block'; expected 'model' or 'layer'"),
        (stockpot.Uniform, {"top": 0}, "top is 0; expected 1 or more"),
        (stockpot.Uniform, {"weigh": "all"}, "weigh is 'all'; expected 'fisher', 'regmean' or"),
        (stockpot.Learned, {"constraint": "x"}, "constraint is 'x'; expected 'softmax', 'free' or"),
    ],
)
def test_other_words_types_and_less_than_the_least_are_refused(
    recipe: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**options)
    assert str(caught.value).startswith(message)


def test_numbers_of_numpy_are_numbers() -> None:
    assert stockpot.Greedy(seed=np.int64(3), min_gain=np.float32(0.5)).seed == 3
    assert stockpot.WiseFT(alpha=np.float64(0.25)).alpha == 0.25
    assert stockpot.WiseFT(alpha=1).alpha == 1
