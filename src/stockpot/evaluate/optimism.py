"""How much better a chosen model looks on the data that it was chosen on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Optimism:
    """Mean of chosen-on score minus left-out score over resamples, with a 95 % range.

    Positive means that choosing flatters, whichever direction of the metric is better.
    """

    value: float
    low: float
    high: float
    n_candidates: int


def selection_optimism(
    candidates: npt.ArrayLike,
    *,
    higher_is_better: bool = True,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Optimism:
    """Bootstrap of choosing the best of several models by their mean score.

    Examples are resampled; the model that is best on the resample is scored on the resample and on
    the examples that it left out (about 37 %), and the difference is averaged.

    Args:
        candidates: per-example scores (m, n) of m fully scored models.
        higher_is_better: direction of the score.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no candidates, or fewer than two examples.

    >>> rng = np.random.default_rng(0)
    >>> equally_good = rng.random((30, 200)) < 0.8
    >>> selection_optimism(equally_good).value > 0.02
    True
    """
    rows = np.asarray(candidates, np.float64)
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise ValueError(f"scores have shape {rows.shape}; expected (models ≥ 1, examples ≥ 2)")
    sign = 1.0 if higher_is_better else -1.0
    m, n = rows.shape
    rng = np.random.default_rng(seed)
    differences: list[float] = []
    # Some resamples at a time: a product of matrices, and not all counts in memory at once.
    step = max(1, (1 << 18) // n)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)])
        left_out = (counts == 0).astype(np.float64)
        n_left = left_out.sum(1)
        inside = counts.astype(np.float64) @ rows.T / n
        best = np.argmax(sign * inside, axis=1)
        outside = np.einsum("bn,bn->b", left_out, rows[best]) / np.maximum(n_left, 1)
        found = sign * (inside[np.arange(size), best] - outside)
        differences += found[n_left > 0].tolist()
    low, high = np.quantile(differences, [0.025, 0.975])
    mean = math.fsum(differences) / len(differences)
    return Optimism(mean, float(low), float(high), m)
