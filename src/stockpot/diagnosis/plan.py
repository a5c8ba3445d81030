"""What a diagnosis evaluates, and how a budget is divided before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

from stockpot.analysis.pairs import ALPHAS
from stockpot.errors import RecipeError
from stockpot.evaluate.batchnorm import has_batchnorm
from stockpot.evaluate.task import Role, Task

MAX_PAIRS = 66
"""Pairs that are scored at most, a random sample of more; 66 are all pairs of twelve."""

LINE_POINTS, STEP_POINTS = 11, 5
"""Points of a line between two models, and of a step of the greedy path; ends included."""
_PLANE_POINTS = 81
N_ORDERS = 3
"""Random orders in which soups of 1, 2, … ingredients are made."""


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


def plan(k: int, n_reporting: int, *, n_asked: int = 0, has_batchnorm: bool = False) -> list[Part]:
    """The parts of a study of `k` ingredients on a task with `n_reporting` other splits.

    Each is what it takes at most: points that two parts share are scored once.
    """
    pairs = min(k * (k - 1) // 2, MAX_PAIRS)
    interior = LINE_POINTS - 2
    of_greedy = (STEP_POINTS - 2) * (k - 1)
    lines = 6 * interior + of_greedy
    return [
        Part("base and ingredients", k + 1, k + 1, needed=True),
        # Scored once more with averaged statistics, to say what recalibration does.
        Part("soups", k + has_batchnorm, k + has_batchnorm, needed=True),
        Part("lines asked for", n_asked * interior, n_asked * interior, needed=n_asked > 0),
        Part("lines", interior, lines),
        Part("pairs", len(ALPHAS) * min(pairs, 6), len(ALPHAS) * pairs),
        Part("landscape", 17, _PLANE_POINTS + 1),
        Part("reports", 4 * n_reporting, (k + 4) * n_reporting),
        Part("leave one out", k, 2 * k),
        Part("number of ingredients", max(0, k - 2), N_ORDERS * max(0, k - 2)),
    ]


def planned(
    ingredients: Sized, task: Task, budget: int | None = None, *, n_asked: int = 0
) -> dict[str, Any]:
    """What a study would evaluate, under the keys of its `to_json`, and what it would wish for."""
    n_reporting = sum(split.role is not Role.HELD_OUT for split in task.splits.values())
    parts = plan(
        len(ingredients), n_reporting, n_asked=n_asked, has_batchnorm=has_batchnorm(task.build())
    )
    shares = share_out(budget, parts)
    return {
        "budget": {
            "given": budget,
            "planned": sum(shares.values()),
            "made": 0,
            "parts": shares,
        },
        "wishes": {part.name: part.wish for part in parts},
    }
