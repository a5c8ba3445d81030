"""The loss over the plane through a base and two fine-tuned models, and where to look next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from stockpot._types import JSON
from stockpot.analysis.geometry import Plane, plane_through
from stockpot.analysis.space import LossAndScore, WeightPoint, WeightSpace

MIDPOINT = "midpoint"
_MARGIN = 0.25  # of the extent of the three models, on each side


@dataclass(frozen=True, slots=True)
class PlanePoint:
    """A point of the plane that was scored on held-out data."""

    x: float
    y: float
    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class PlaneModel:
    """A model in the plane, or beside it: its orthogonal projection, and its distance from it.

    Loss and score are of the model itself, not of its projection; None where they are not known.
    """

    name: str
    kind: str
    x: float
    y: float
    distance: float
    loss: float | None
    score: float | None


@dataclass(frozen=True)
class Landscape:
    """Held-out loss and score over a plane, in units of distance between weights.

    Attributes:
        through: names of the three models that span it: base, first, second.
        spots: everything that was scored, in the order in which it was.
        marks: the three, their midpoint, and all other models by projection.
        lower: whether the midpoint has a lower held-out loss than both fine-tuned models.
    """

    through: tuple[str, str, str]
    spots: tuple[PlanePoint, ...]
    marks: tuple[PlaneModel, ...]
    lower: bool

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "through": list(self.through),
            "soup_lower_than_both": self.lower,
            "marks": [asdict(mark) for mark in self.marks],
            "spots": [asdict(spot) for spot in self.spots],
        }


def landscape(
    space: WeightSpace,
    first: WeightPoint,
    second: WeightPoint,
    *,
    budget: int,
    others: Sequence[tuple[str, WeightPoint]] = (),
) -> Landscape:
    """Score the plane through the base and two points, finest where the loss changes most.

    Args:
        space: what is scored.
        first: the x axis goes through it.
        second: spans the plane with it.
        budget: most points, the three models and their midpoint not counted.
        others: kind and point of models to be projected.

    Raises:
        ValueError: the three lie on one line.
    """
    plane = plane_through(space.geometry.gram, first.coefficients, second.coefficients)
    middle = space.between(first, second, 0.5)
    middle = WeightPoint(f"{MIDPOINT} of {first.name} and {second.name}", middle.coefficients)
    named = [("base", space.origin), ("run", first), ("run", second), ("midpoint", middle)]
    measured = {point.name: space.measure(point) for _, point in named}
    corners = [plane.project(point.coefficients) for _, point in named[:3]]
    x, y = margins([(corner.x, corner.y) for corner in corners])
    spots: list[PlanePoint] = []

    def height(px: float, py: float) -> float:
        found = space.measure(space.at(f"({px:.3g}, {py:.3g})", plane.at(px, py)))
        spots.append(PlanePoint(px, py, found.loss, found.score))
        # Bounded, so that a cliff far outside does not draw all points to itself.
        return found.loss / (1 + found.loss)

    explore(height, x=x, y=y, budget=budget)
    marks = [_mark(plane, kind, point, measured[point.name]) for kind, point in named]
    marks += [
        _mark(plane, kind, point, space.measure(point))
        for kind, point in others
        if point.name not in measured
    ]
    ends = (measured[first.name].loss, measured[second.name].loss)
    return Landscape(
        (space.origin.name, first.name, second.name),
        tuple(spots),
        tuple(marks),
        measured[middle.name].loss < min(ends),
    )


def margins(
    points: Sequence[tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """A square around `points` with room on each side: ranges of x and y.

    >>> margins([(0.0, 0.0), (4.0, 0.0), (2.0, 2.0)])
    ((-1.0, 5.0), (-2.0, 4.0))
    """
    xs, ys = zip(*points, strict=True)
    side = max(max(xs) - min(xs), max(ys) - min(ys)) * (1 + 2 * _MARGIN)
    cx, cy = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return (cx - side / 2, cx + side / 2), (cy - side / 2, cy + side / 2)


def _mark(plane: Plane, kind: str, point: WeightPoint, found: LossAndScore | None) -> PlaneModel:
    projection = plane.project(point.coefficients)
    return PlaneModel(
        point.name,
        kind,
        projection.x,
        projection.y,
        projection.distance,
        None if found is None else found.loss,
        None if found is None else found.score,
    )


@dataclass
class Grid:
    """Values at points of a square lattice, finer in some points than in others.

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

    def point(self, position: tuple[int, int]) -> tuple[float, float]:
        """Coordinates of a position."""
        (x0, x1), (y0, y1) = self.x, self.y
        i, j = position
        return x0 + (x1 - x0) * i / self.n_units, y0 + (y1 - y0) * j / self.n_units

    def points(self) -> list[tuple[float, float]]:
        """Coordinates of everything found, in the order in which it was found."""
        return [self.point(position) for position in self.values]


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
                grid.values[position] = value(*grid.point(position))

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
