"""How high the loss rises on the way from one model to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Barrier:
    """`height` in the unit of the loss, reached at `alpha` (0 is the first model, 1 the second)."""

    height: float
    alpha: float


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> Barrier:
    """Largest excess of the loss on a path over the straight line between its two ends.

    B = max over a of L(θ_a) − [(1−a)·L(θ_0) + a·L(θ_1)], over the points given, ends included, so
    B ≥ 0. Near 0 the two models lie in one basin and average well; a barrier of the order of the
    loss of guessing says that they do not. It depends on how many points are looked at: 11 unless
    said otherwise.

    >>> barrier([0, 0.5, 1], [0.25, 2.0, 0.75])
    Barrier(height=1.5, alpha=0.5)

    Args:
        alphas: increasing, from 0 to 1.
        losses: mean loss at each, lower is better; nats for cross-entropy.

    Raises:
        ValueError: the points do not run from 0 to 1, or their numbers differ.

    Reference: Frankle et al. 2020, arXiv 1912.05671, §2 (error barrier).
    """
    a, loss = np.asarray(alphas, np.float64), np.asarray(losses, np.float64)
    if a.shape != loss.shape or a.ndim != 1:
        raise ValueError(f"{a.size} alphas and {loss.size} losses; expected one loss each")
    if len(a) < 2 or a[0] != 0 or a[-1] != 1 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas are {list(alphas)}; expected increasing from 0 to 1")
    excess = loss - ((1 - a) * loss[0] + a * loss[-1])
    highest = int(excess.argmax())
    return Barrier(float(excess[highest]), float(a[highest]))
