"""Quantities of pairs of models: how they hang together, when the pairs share models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot.evaluate.intervals import Floats, quantiles


@dataclass(frozen=True, slots=True)
class PairCorrelation:
    """Pearson's r over pairs of runs and its 95 % interval by a bootstrap over runs.

    `value` is None when one of the quantities does not vary; `low` and `high` are None then and
    with fewer than four runs, which say too little about their spread.
    """

    value: float | None
    low: float | None
    high: float | None
    n_pairs: int
    n_runs: int


def pair_correlation(
    pairs: Sequence[tuple[int, int]],
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairCorrelation:
    """Correlation of two quantities over pairs of runs, with an interval over *runs*.

    Pairs that share a run are not independent: resampling pairs would give an interval that is far
    too narrow. Runs are resampled instead; a pair counts as often as the product of the counts of
    its two runs, and pairs of a run with itself do not exist.

    >>> pairs = [(0, 1), (0, 2), (1, 2)]
    >>> pair_correlation(pairs, [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).value
    1.0

    Args:
        pairs: the two runs of each, as numbers; the same pair may occur several times.
        x: one quantity (p,).
        y: the other (p,).

    Raises:
        ValueError: unequal lengths.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not len(pairs) == len(a) == len(b):
        raise ValueError(f"{len(pairs)} pairs, {len(a)} x and {len(b)} y; expected equal numbers")
    runs = sorted({run for pair in pairs for run in pair})
    position = {run: i for i, run in enumerate(runs)}
    one = np.array([position[i] for i, _ in pairs], np.int64)
    other = np.array([position[j] for _, j in pairs], np.int64)
    value = _weighted(a, b, np.ones(len(a)))
    if value is None or len(runs) < 4:
        return PairCorrelation(value, None, None, len(pairs), len(runs))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_resamples):
        counts = np.bincount(rng.integers(0, len(runs), len(runs)), minlength=len(runs))
        r = _weighted(a, b, (counts[one] * counts[other]).astype(np.float64))
        if r is not None:
            found.append(r)
    low, high = quantiles(np.array(found), level)
    return PairCorrelation(value, low, high, len(pairs), len(runs))


def _weighted(x: Floats, y: Floats, w: Floats) -> float | None:
    """Pearson's r with weights; None where it is not defined."""
    if int((w > 0).sum()) < 3:
        return None
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    norm = float(np.sqrt((w * x * x).sum() * (w * y * y).sum()))
    if norm <= 1e-300:
        return None
    return float(np.clip((w * x * y).sum() / norm, -1.0, 1.0))
