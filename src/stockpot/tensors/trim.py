"""A block as it is stored, and which changes from a base are kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stockpot.tensors.rounding import Array


class Stored(NamedTuple):
    """A block as it is stored, one-dimensional, and the name of its type."""

    block: Array
    dtype: str


@dataclass(frozen=True, slots=True)
class Trim:
    """Which changes are kept, and what those are divided by; the others become +0.0.

    Attributes:
        least: the least magnitude that is kept.
        most: the largest.
        kept: whether each is kept, beside that; None for all.
        share: divides what is kept: a number, or one for each.
    """

    least: float = 0.0
    most: float = math.inf
    kept: npt.NDArray[np.bool_] | None = None
    share: float | npt.NDArray[np.float64] = 1.0


NO_TRIM = Trim()
