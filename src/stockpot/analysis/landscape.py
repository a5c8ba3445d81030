"""Planes in weight space, and where in one to look next: pure geometry, no weights.

Every point here is θ₀ + Σ cᵢ·(θᵢ − θ₀), written as its coefficients c (k,) over the moves from the
base. Inner products come from their Gram matrix, so nothing of the size of a model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stockpot.evaluate.intervals import Floats


class Projection(NamedTuple):
    """The foot of a point in a plane, and how far from the plane the point is."""

    x: float
    y: float
    distance: float


def angle(gram: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Degrees between two moves given by coefficients; None when one of them is no move.

    >>> angle([[1, 0], [0, 4]], [1, 0], [1, 0.5])
    45.0
    """
    g, u, v = (np.asarray(x, np.float64) for x in (gram, a, b))
    norm = math.sqrt(max(0.0, float(u @ g @ u)) * max(0.0, float(v @ g @ v)))
    if norm == 0:
        return None
    return round(math.degrees(math.acos(max(-1.0, min(1.0, float(u @ g @ v) / norm)))), 10)


@dataclass(frozen=True)
class Plane:
    """A plane through the base with an orthonormal basis, in units of distance between weights.

    Attributes:
        gram: inner products of the moves, (k, k).
        first: coefficients of the first unit vector, along the first point.
        second: of the second, at right angles to it, towards the second point.
    """

    gram: Floats
    first: Floats
    second: Floats

    def project(self, point: npt.ArrayLike) -> Projection:
        """Coordinates of the nearest point of the plane to θ₀ + Σ cᵢ·Δᵢ, and the distance to it."""
        c = np.asarray(point, np.float64)
        x, y = float(self.first @ self.gram @ c), float(self.second @ self.gram @ c)
        rest = c - x * self.first - y * self.second
        return Projection(x, y, math.sqrt(max(0.0, float(rest @ self.gram @ rest))))

    def at(self, x: float, y: float) -> Floats:
        """Coefficients of the point (x, y) of the plane."""
        found: Floats = x * self.first + y * self.second
        return found


def plane_through(gram: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Plane:
    """The plane through the base and two points, its basis by Gram–Schmidt on (a, b).

    u = a/‖a‖, v = (b − ⟨b, u⟩u)/‖b − ⟨b, u⟩u‖. The first point lies on the positive x axis, the
    second above it.

    >>> plane = plane_through([[4, 2], [2, 5]], [1, 0], [0, 1])
    >>> plane.project([1, 0]), plane.project([0, 1])
    (Projection(x=2.0, y=0.0, distance=0.0), Projection(x=1.0, y=2.0, distance=0.0))

    Args:
        gram: inner products of the moves, (k, k).
        a: coefficients (k,) of the first point.
        b: coefficients (k,) of the second point.

    Raises:
        ValueError: the three points lie on one line.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, figure 2.
    """
    g, u, v = (np.asarray(x, np.float64) for x in (gram, a, b))
    first_norm, second_norm = (math.sqrt(max(0.0, float(p @ g @ p))) for p in (u, v))
    if first_norm == 0 or second_norm == 0:
        raise ValueError("one of the two points is the base itself; a plane needs three points")
    u = u / first_norm
    v = v - float(v @ g @ u) * u
    height = math.sqrt(max(0.0, float(v @ g @ v)))
    if height < 1e-6 * second_norm:
        raise ValueError("the two points lie on one line through the base; they span no plane")
    return Plane(g, u, v / height)


@dataclass
class Grid:
    """Values at points of a square lattice, finer in some places than in others.

    It has state, the values found so far. Positions are whole numbers in the finest unit, so that
    no point is met twice under two names.

    Attributes:
        x: lowest and highest x.
        y: lowest and highest y.
        n_units: of the finest lattice along each side.
        values: found so far, by position.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    n_units: int
    values: dict[tuple[int, int], float] = field(default_factory=dict)

    def place(self, position: tuple[int, int]) -> tuple[float, float]:
        """Coordinates of a position."""
        (x0, x1), (y0, y1) = self.x, self.y
        i, j = position
        return x0 + (x1 - x0) * i / self.n_units, y0 + (y1 - y0) * j / self.n_units

    def points(self) -> list[tuple[float, float]]:
        """Coordinates of everything found, in the order in which it was found."""
        return [self.place(position) for position in self.values]


def explore(
    value: Callable[[float, float], float],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    budget: int,
    coarse: int = 5,
    levels: int = 3,
) -> Grid:
    """Evaluate a function on a grid that is refined where it changes most, within a budget.

    First come the coarse × coarse points. Then always that cell is divided in four whose corners
    differ most, weighted by the length of its side (ties: the earlier cell), until the next cell
    would exceed the budget or all cells are at the finest level. The order depends on nothing but
    the values, so a run that is made again asks for the same points.

    >>> grid = explore(lambda x, y: float(x > 0.6), x=(0, 1), y=(0, 1), budget=40, coarse=3)
    >>> len(grid.values) <= 40, max(px for px, _ in grid.points())
    (True, 1.0)

    Args:
        value: what is drawn; each point is asked for once.
        x: lowest and highest x.
        y: lowest and highest y.
        budget: most evaluations.
        coarse: points along each side of the first grid; fewer when the budget does not allow it.
        levels: how often a cell may be divided.

    Raises:
        ValueError: the budget is below 4, the corners.
    """
    if budget < 4:
        raise ValueError(f"a landscape of {budget} points; expected at least its 4 corners")
    coarse = min(coarse, math.isqrt(budget))
    unit = 2**levels
    grid = Grid(x, y, (coarse - 1) * unit)

    def look(positions: Sequence[tuple[int, int]]) -> None:
        for position in positions:
            if position not in grid.values:
                grid.values[position] = value(*grid.place(position))

    steps = range(0, grid.n_units + 1, unit)
    look([(i, j) for i in steps for j in steps])
    cells = [(i, j, unit) for i in steps[:-1] for j in steps[:-1]]
    while True:
        divisible = [cell for cell in cells if cell[2] > 1]
        if not divisible:
            return grid
        # The first of equals: sorted() and max() are stable.
        cell = max(divisible, key=lambda c: _spread(grid, c) * c[2])
        missing = [p for p in _middles(cell) if p not in grid.values]
        if len(grid.values) + len(missing) > budget:
            return grid
        look(missing)
        i, j, size = cell
        half = size // 2
        cells.remove(cell)
        cells += [(i + a, j + b, half) for a in (0, half) for b in (0, half)]


def _spread(grid: Grid, cell: tuple[int, int, int]) -> float:
    i, j, size = cell
    corners = [grid.values[i + a, j + b] for a in (0, size) for b in (0, size)]
    return max(corners) - min(corners)


def _middles(cell: tuple[int, int, int]) -> list[tuple[int, int]]:
    """The five new points that divide a cell in four."""
    i, j, size = cell
    half = size // 2
    return [(i + a, j + b) for a in (0, half, size) for b in (0, half, size) if half in (a, b)]
