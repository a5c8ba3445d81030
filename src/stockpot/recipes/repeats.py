"""How far a result depends on chance: random orders, and the number of ingredients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.recipes.base import Kitchen
from stockpot.recipes.soup import Soup

if TYPE_CHECKING:
    from stockpot.recipes.greedy import Greedy


@dataclass(frozen=True)
class RandomOrders:
    """Greedy soups of several random orders.

    `mean` and `sd` are of each split's score over the orders, sd with n−1 in the denominator.
    """

    soups: tuple[Soup, ...]
    mean: dict[str, float]
    sd: dict[str, float]

    def to_json(self) -> dict[str, JSON]:
        """Mean and sd by split, and what each order kept."""
        return {
            "orders": len(self.soups),
            "mean": dict(self.mean),
            "sd": dict(self.sd),
            "selected": [list(soup.selected) for soup in self.soups],
        }


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores of uniform soups of `n_ingredients`, over random choices of them."""

    n_ingredients: int
    mean: dict[str, float]
    sd: dict[str, float | None]

    def to_json(self) -> dict[str, JSON]:
        """The three fields; `sd` is null where there is only one choice."""
        return {"ingredients": self.n_ingredients, "mean": dict(self.mean), "sd": dict(self.sd)}


def random_orders(kitchen: Kitchen, recipe: Greedy, *, n_orders: int = 3) -> RandomOrders:
    """Greedy soups that try the ingredients in `n_orders` random orders, seeds 0, 1, ….

    The paper uses three. Against the best-first order it shows what the ranking is worth.

    Raises:
        RecipeError: fewer than two orders, which have no spread.
    """
    if n_orders < 2:
        raise RecipeError(f"{n_orders} orders have no spread; expected at least 2")
    plain = replace(recipe, order="random", explain=False, random_orders=0, curve=0)
    soups = tuple(
        replace(plain, seed=seed).cook(
            kitchen.ingredients,
            evaluator=kitchen.evaluator,
            choose_on=kitchen.choose_on,
            dtype=kitchen.dtype,
            report=kitchen.report,
        )
        for seed in range(n_orders)
    )
    mean, sd = _spread([_values(soup) for soup in soups])
    return RandomOrders(soups, mean, {k: v for k, v in sd.items() if v is not None})


def ingredients_curve(
    kitchen: Kitchen, *, n_orders: int = 3, sizes: Sequence[int] | None = None, seed: int = 0
) -> list[CurvePoint]:
    """Scores of uniform soups against the number of ingredients.

    In each of `n_orders` random orders the first m ingredients are averaged, for every m (or those
    of `sizes`).

    Raises:
        RecipeError: no orders, or sizes out of range.
    """
    k = len(kitchen.ingredients)
    wanted = list(range(1, k + 1)) if sizes is None else list(sizes)
    if n_orders < 1 or any(not 1 <= m <= k for m in wanted):
        raise RecipeError(f"{n_orders} orders of {wanted} ingredients; there are {k}")
    rng = np.random.default_rng(seed)
    orders: list[list[int]] = [rng.permutation(k).tolist() for _ in range(n_orders)]
    points = []
    for m in wanted:
        chosen = {tuple(sorted(order[:m])) for order in orders}
        scores = [
            {s: v.value for s, v in kitchen.scores(kitchen.uniform(part)).items() if v is not None}
            for part in sorted(chosen)
        ]
        mean, sd = _spread(scores)
        points.append(CurvePoint(m, mean, sd))
    return points


def _values(soup: Soup) -> dict[str, float]:
    return {split: score.value for split, score in soup.scores.items() if score is not None}


def _spread(
    rows: Sequence[dict[str, float]],
) -> tuple[dict[str, float], dict[str, float | None]]:
    mean, sd = dict[str, float](), dict[str, float | None]()
    for split in rows[0]:
        values = np.array([row[split] for row in rows])
        mean[split] = float(values.mean())
        sd[split] = float(values.std(ddof=1)) if len(values) > 1 else None
    return mean, sd
