"""The loss over the plane through the base and two fine-tuned models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stockpot._types import JSON
from stockpot.analysis.landscape import Plane, explore, plane_through
from stockpot.analysis.space import Place, Reading, Space

MIDPOINT = "midpoint"
_MARGIN = 0.25  # of the extent of the three models, on each side


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of the plane that was scored on held-out data."""

    x: float
    y: float
    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A model in the plane, or beside it: its foot and its distance from the plane.

    Loss and score are those of the model itself, not of its foot; None where they are not known.
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
    spots: tuple[Spot, ...]
    marks: tuple[Mark, ...]
    lower: bool

    def mark(self, name: str) -> Mark:
        """The mark of this name; `KeyError` if there is none."""
        for mark in self.marks:
            if mark.name == name:
                return mark
        raise KeyError(name)

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "through": list(self.through),
            "soup_lower_than_both": self.lower,
            "marks": [asdict(mark) for mark in self.marks],
            "spots": [asdict(spot) for spot in self.spots],
        }


def landscape(
    space: Space,
    first: Place,
    second: Place,
    *,
    budget: int,
    others: Sequence[tuple[str, Place]] = (),
) -> Landscape:
    """Score the plane through the base and two places, finest where the loss changes most.

    Args:
        space: what is scored.
        first: the x axis goes through it.
        second: spans the plane with it.
        budget: most points, the three models and their midpoint not counted.
        others: kind and place of models to be projected.

    Raises:
        ValueError: the three lie on one line.
    """
    plane = plane_through(space.geometry.gram, first.coefficients, second.coefficients)
    middle = space.between(first, second, 0.5)
    middle = Place(f"{MIDPOINT} of {first.name} and {second.name}", middle.coefficients)
    named = [("base", space.origin), ("run", first), ("run", second), ("midpoint", middle)]
    readings = {place.name: space.read(place) for _, place in named}
    corners = [plane.project(place.coefficients) for _, place in named[:3]]
    x, y = margins([(corner.x, corner.y) for corner in corners])
    spots: list[Spot] = []

    def height(px: float, py: float) -> float:
        reading = space.read(space.at(f"({px:.3g}, {py:.3g})", plane.at(px, py)))
        spots.append(Spot(px, py, reading.loss, reading.score))
        # Bounded, so that a cliff far outside does not draw all points to itself.
        return reading.loss / (1 + reading.loss)

    explore(height, x=x, y=y, budget=budget)
    marks = [_mark(plane, kind, place, readings[place.name]) for kind, place in named]
    marks += [
        _mark(plane, kind, place, space.read(place))
        for kind, place in others
        if place.name not in readings
    ]
    ends = (readings[first.name].loss, readings[second.name].loss)
    return Landscape(
        (space.origin.name, first.name, second.name),
        tuple(spots),
        tuple(marks),
        readings[middle.name].loss < min(ends),
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


def _mark(plane: Plane, kind: str, place: Place, reading: Reading | None) -> Mark:
    foot = plane.project(place.coefficients)
    return Mark(
        place.name,
        kind,
        foot.x,
        foot.y,
        foot.distance,
        None if reading is None else reading.loss,
        None if reading is None else reading.score,
    )
