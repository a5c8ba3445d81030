"""Where to write the names of points so that no two names overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_RINGS = (14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 98.0, 118.0)
_DIRECTIONS = 16
# A label that hides a point misleads; one that is far from its point merely takes a line to find.
_COST_OF_HIDING = 40.0
_COST_OF_CROSSING = 25.0


class Box(NamedTuple):
    """A rectangle by its corners; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def inside(self, other: Box) -> bool:
        """Whether nothing of this box lies outside `other`."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies in the box."""
        return self.left <= x <= self.right and self.bottom <= y <= self.top


def _around(x: float, y: float, width: float, height: float, angle: float, radius: float) -> Box:
    """The box whose nearest edge lies about `radius` from the point, in the direction `angle`."""
    cx = x + math.cos(angle) * (radius + width / 2)
    cy = y + math.sin(angle) * (radius + height / 2)
    return Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


def _crosses(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> bool:
    """Whether the segments ab and cd cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    obstacles: Sequence[tuple[float, float]],
    bounds: Box,
) -> list[Box | None]:
    """A box for the label of each anchor: inside `bounds`, clear of the other labels.

    Labels are placed one after the other, each at the cheapest free position: near its point,
    hiding few of the points (`obstacles`, which may hold the anchors), its leader line crossing no
    other. The result is the same for the same input. None where there is no room at all.

    >>> place([(50, 50)], [(20, 10)], obstacles=[(50, 50)], bounds=Box(0, 0, 100, 100))
    [Box(left=64.0, bottom=45.0, right=84.0, top=55.0)]
    """
    placed: list[Box | None] = []
    leaders: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for radius in _RINGS:
            for step in range(_DIRECTIONS):
                box = _around(x, y, width, height, 2 * math.pi * step / _DIRECTIONS, radius)
                if not box.inside(bounds) or any(p is not None and box.overlaps(p) for p in placed):
                    continue
                end = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
                hidden = sum(box.holds(*point) for point in obstacles)
                crossed = sum(_crosses((x, y), end, *leader) for leader in leaders)
                cost = radius + _COST_OF_HIDING * hidden + _COST_OF_CROSSING * crossed
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, box)
        placed.append(None if best is None else best[1])
        if best is not None:
            box = best[1]
            leaders.append(((x, y), ((box.left + box.right) / 2, (box.bottom + box.top) / 2)))
    return placed
