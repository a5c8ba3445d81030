"""How much better a chosen model looks on the data that it was chosen on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Optimism", "selection_optimism"]


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
    n = rows.shape[1]
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(n_resamples):
        counts = np.bincount(rng.integers(0, n, n), minlength=n)
        left_out = counts == 0
        if not left_out.any():
            continue
        inside = rows @ counts / n
        best = int(np.argmax(sign * inside))
        differences.append(sign * float(inside[best] - rows[best, left_out].mean()))
    low, high = np.quantile(differences, [0.025, 0.975])
    mean = math.fsum(differences) / len(differences)
    return Optimism(mean, float(low), float(high), rows.shape[0])
