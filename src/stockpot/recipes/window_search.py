"""Which of many windows are scored within a budget: spread over all, then around the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_ROUNDS = 3
"""Looks around the best so far, each at half the distance of the one before."""


def coarse_to_fine(
    vectors: Sequence[Sequence[float]],
    qualities: Callable[[list[int]], Sequence[float]],
    *,
    budget: int,
    first: int = 0,
) -> dict[int, float]:
    """Positions of vectors that were scored, in the order in which they were, and their qualities.

    Two windows are as far apart as their weights have to be moved along the run to become each
    other's (the earth mover's distance), whatever their kind, stride and order. Half of the budget
    goes to windows that lie far from each other. The other half goes, in three rounds, to windows
    around the best so far, each time within half of the distance. What is scored depends on scores
    alone, so a search that was killed goes the same way again.

    >>> vectors = np.tril(np.ones((40, 40))) / np.arange(1, 41)[:, None]
    >>> found = coarse_to_fine(
    ...     vectors, lambda asked: [-abs(i - 27) for i in asked], budget=16, first=39
    ... )
    >>> max(found, key=found.__getitem__), len(found)
    (27, 16)

    Args:
        vectors: coefficients (n, k) of every window, all different.
        qualities: scores the vectors at some positions, which may be done side by side; larger is
            better.
        budget: vectors to score, at most.
        first: position of one that is scored in any case.
    """
    points = np.cumsum(np.asarray(vectors, np.float64), axis=1)
    if budget >= len(points):
        return _scored(range(len(points)), qualities)
    found = _scored([first], qualities)
    coarse = _spread(points, range(len(points)), list(found), max(1, budget // 2) - len(found))
    found |= _scored(coarse, qualities)
    radius = 2 * max(_nearest(points, list(found)))
    for rounds_left in range(_ROUNDS, 0, -1):
        size = -(-(budget - len(found)) // rounds_left)
        gaps = _gaps(points, max(found, key=found.__getitem__))
        waiting = [i for i in np.argsort(gaps, kind="stable").tolist() if i not in found]
        near = [i for i in waiting if gaps[i] <= radius]
        taken = _spread(points, near, list(found), size) if len(near) > size else waiting[:size]
        found |= _scored(taken, qualities)
        radius /= 2
    return found


def _scored(
    positions: Iterable[int], qualities: Callable[[list[int]], Sequence[float]]
) -> dict[int, float]:
    asked = list(positions)
    return dict(zip(asked, qualities(asked), strict=True)) if asked else {}


def _gaps(points: Floats, position: int) -> Floats:
    """Distance of every point to that at `position`: mean over the run of |ΔF|."""
    found: Floats = np.abs(points - points[position]).mean(axis=1)
    return found


def _nearest(points: Floats, chosen: list[int]) -> Floats:
    """Distance of every point to the nearest of those at `chosen`."""
    found = np.full(len(points), np.inf)
    for position in chosen:
        found = np.minimum(found, _gaps(points, position))
    return found


def _spread(points: Floats, among: Iterable[int], chosen: list[int], n: int) -> list[int]:
    """`n` positions of `among`, each the farthest from all that were chosen before it."""
    candidates, taken = np.array(list(among)), list[int]()
    nearest = _nearest(points, chosen)
    for _ in range(n):
        farthest = int(candidates[np.argmax(nearest[candidates])])
        taken.append(farthest)
        nearest = np.minimum(nearest, _gaps(points, farthest))
    return taken
