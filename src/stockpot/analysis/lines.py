"""Losses along straight lines between two models, and the barriers on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from stockpot._types import JSON
from stockpot.analysis.barrier import barrier
from stockpot.analysis.space import Place, Space


@dataclass(frozen=True, slots=True)
class Line:
    """Held-out loss and score on the line from `a` (α = 0) to `b` (α = 1).

    Attributes:
        kind: what it is about: `"base"`, `"runs"`, `"soup"`, `"greedy path"`, `"asked for"`.
        losses: mean cross-entropy in nats at each of `alphas`.
        scores: the task's metric there.
        barrier: largest excess of the loss over the straight line between its two ends, in nats.
        at: the α where it is reached.
    """

    a: str
    b: str
    kind: str
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    barrier: float
    at: float

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        told: dict[str, JSON] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return told


def line(space: Space, a: Place, b: Place, *, n_points: int = 11, kind: str = "asked for") -> Line:
    """Score the line between two places at `n_points` equal steps, ends included.

    A barrier depends on how many points are looked at: 11 unless said otherwise.
    """
    alphas = [round(float(alpha), 9) for alpha in np.linspace(0, 1, n_points)]
    readings = [space.read(space.between(a, b, alpha)) for alpha in alphas]
    losses = [reading.loss for reading in readings]
    found = barrier(alphas, losses)
    return Line(
        a.name,
        b.name,
        kind,
        tuple(alphas),
        tuple(losses),
        tuple(reading.score for reading in readings),
        found.height,
        found.alpha,
    )
