"""What each ingredient is worth to a soup, and how a soup grows with their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stockpot._types import JSON
from stockpot.analysis.space import Space
from stockpot.diagnosis.reporting import difference


@dataclass(frozen=True, slots=True)
class Worth:
    """Held-out score of a soup less its score without one ingredient.

    Positive where a higher score is better means that the ingredient helps. The 95 % interval is
    None for metrics that are no means.
    """

    path: str
    soup: str
    difference: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        told: dict[str, JSON] = asdict(self)
        return told


def leave_one_out(space: Space, name: str, members: Sequence[int]) -> list[Worth]:
    """The worth of each of the `members` of the uniform soup of them all; at least two."""
    whole = space.predictions(space.mean(name, members))
    score = space.score(whole, name)
    found = []
    for i in members:
        rest = space.mean(f"{name} without {space.given[i].path}", [j for j in members if j != i])
        without = space.predictions(rest)
        gap = difference(whole, without, seed=space.evaluator.seed)
        found.append(
            Worth(
                space.given[i].path,
                name,
                score - space.score(without, rest.name),
                None if gap is None else gap.low,
                None if gap is None else gap.high,
            )
        )
    return found
