"""Dividing a budget of evaluations between the parts of a study, before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stockpot.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a study costs, in evaluations: one set of weights on one split.

    Attributes:
        name: for people.
        least: below this it is not done at all.
        wish: beyond this more would change little.
        needed: without it there is no study.
    """

    name: str
    least: int
    wish: int
    needed: bool = False


def share_out(budget: int | None, parts: Sequence[Part]) -> dict[str, int]:
    """How many evaluations each part gets; 0 for what is left out. None is no limit.

    In the order given, each part first gets the least it can work with, then what it wishes for.
    Nothing here depends on what a journal knows already: equal arguments make equal studies.

    >>> parts = [Part("scores", 3, 3, needed=True), Part("lines", 9, 18), Part("plane", 16, 64)]
    >>> share_out(30, parts), share_out(13, parts)
    ({'scores': 3, 'lines': 11, 'plane': 16}, {'scores': 3, 'lines': 10, 'plane': 0})

    Raises:
        RecipeError: it does not suffice for what is needed; says how much would.
    """
    if budget is None:
        return {part.name: part.wish for part in parts}
    needed = sum(part.least for part in parts if part.needed)
    if budget < needed:
        names = " and ".join(part.name for part in parts if part.needed)
        raise RecipeError(
            f"a budget of {budget} evaluations does not suffice for {names}; expected at least "
            f"{needed} (--budget {needed})"
        )
    shares, left = dict.fromkeys((part.name for part in parts), 0), budget
    for part in sorted(parts, key=lambda part: not part.needed):  # stable: those needed come first
        if part.least <= left:
            shares[part.name] = part.least
            left -= part.least
    for part in parts:
        if shares[part.name] > 0:
            more = min(part.wish - shares[part.name], left)
            shares[part.name] += more
            left -= more
    return shares
