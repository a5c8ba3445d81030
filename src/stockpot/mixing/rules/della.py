"""DELLA: keep entries at random, the larger ones of a row with a greater probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import TensorPlan
from stockpot.mixing.rules.dare import RandomTrim
from stockpot.mixing.rules.task_vectors import F64, Shares
from stockpot.tensors.changes import by_rank
from stockpot.tensors.trim import Stored


@final
@dataclass(frozen=True, kw_only=True)
class Della(RandomTrim):
    """Magnitudes drawn at random (MagPrune), signs elected, and the mean of those that agree.

    An entry whose magnitude has the rank r among the m entries of its row (0 is the least) is kept
    with the probability keep − spread + 2·spread·r/(m − 1), and divided by it. Rows are those of
    the tensor as [first axis, all others]; a vector is one row. mergekit does not divide, and
    rescales to the L1 norm (`rescale="l1"`).

    Attributes:
        spread: half the difference between the probabilities of the least and the largest.

    Reference: Deep et al. 2024, arXiv 2406.11617, §3.
    """

    name = "della"

    keep: Shares = option(0.5, help="Mean share of the entries that is kept.")
    signs: Literal["all", "elected"] = option("elected", help="Leave out those of the other sign.")
    normalise: bool = option(True, help="Take the mean of what is kept, and not the sum.")
    spread: Shares = option(
        0.15, help="By how much the largest is likelier kept, and the least less."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.spread, Sequence):
            object.__setattr__(self, "spread", tuple(self.spread))
        shares = np.broadcast_arrays(self.keep, self.spread)
        if not all(keep in (0, 1) or 0 < keep - spread <= keep + spread < 1
                   for keep, spread in np.nditer(shares)):  # fmt: skip
            raise RecipeError(
                f"keep {self.keep} with spread {self.spread}: expected keep ± spread between 0 and "
                "1; give a smaller spread"
            )

    def spread_of(self, position: int) -> float:
        """The spread for the ingredient at `position`."""
        return self.spread[position] if isinstance(self.spread, tuple) else self.spread

    def probability(self, tensor: TensorPlan, i: int, start: int, stop: int) -> float | F64:
        """That of each entry, by its rank in its row."""
        keep, spread = self.keep_of(tensor.positions[i]), self.spread_of(tensor.positions[i])
        width = _row(tensor)
        if keep in (0, 1) or width < 2:
            return keep
        values = np.arange(width, dtype=np.float64)
        values *= 2 * spread
        values /= width - 1
        values += keep - spread
        rows = start // width, -(-stop // width)
        first = start - rows[0] * width
        return by_rank(*_rows(tensor, i, *rows), values).ravel()[first : first + stop - start]


def _row(tensor: TensorPlan) -> int:
    shape = tensor.source.shape
    return tensor.n_items // shape[0] if len(shape) > 1 and shape[0] else tensor.n_items


def _rows(tensor: TensorPlan, i: int, first: int, last: int) -> tuple[Stored, Stored]:
    """Rows `first` to `last` of source `i` and of the base."""
    name, width = tensor.source.name, _row(tensor)
    blocks: list[Stored] = []
    for one in (tensor.inputs[i], tensor.inputs[-1]):
        dtype = one[name].dtype
        size = dtype.storage.itemsize * width
        raw = one.reader(name)(first * size, last * size)
        blocks.append(Stored(raw.view(dtype.storage), dtype.value))
    return blocks[0], blocks[1]
