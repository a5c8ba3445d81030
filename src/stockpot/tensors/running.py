"""Averages that are updated as a run goes on, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_F64 = npt.NDArray[np.float64]


def ema_step(average: _F64, value: _F64, decay: float) -> _F64:
    """The next exponential moving average: w ← d·w + (1−d)·x, elementwise.

    Started at zero it is biased towards zero: after T steps divide by 1 − d^T, or start it at the
    base, in which case no correction is due.

    >>> float(ema_step(np.float64(1.0), np.float64(3.0), 0.75))
    1.5
    """
    return decay * average + (1.0 - decay) * value


def swa_step(average: _F64, value: _F64, n_averaged: int) -> _F64:
    """The mean of n + 1 values, from the mean of the first n: w ← w + (x−w)/(n+1) (1803.05407).

    >>> mean = np.float64(0.0)
    >>> for n, snapshot in enumerate([0.0, 3.0, 6.0]):
    ...     mean = swa_step(mean, np.float64(snapshot), n)
    >>> float(mean)
    3.0
    """
    return average + (value - average) / (n_averaged + 1)
