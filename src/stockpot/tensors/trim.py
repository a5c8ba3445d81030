"""A block as it is stored, which changes from a base are kept of it, and how they are merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class Term(NamedTuple):
    """The changes of one model, trimmed, and what they are multiplied with."""

    value: Stored
    trim: Trim
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """How the terms of several models are merged, element by element.

    Attributes:
        weights: one for each term.
        elect: leave out terms that have not the sign of the sum of all.
        normalise: with `elect`, divide by the weights of the terms that are summed.
        weigh: with `elect`, multiply with the weights what is summed, once its sign is elected.
        divisor: without `elect`, divides the sum of all.
        scale: what the result is multiplied with.
        least_variance: leave out elements whose terms differ less, by their variance; None for
            none.
    """

    weights: Sequence[float]
    elect: bool = True
    normalise: bool = False
    weigh: bool = False
    divisor: float = 1.0
    scale: float = 1.0
    least_variance: float | None = None
