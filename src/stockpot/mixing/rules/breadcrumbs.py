"""Breadcrumbs: leave out the largest and the smallest entries of task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import TensorPlan
from stockpot.mixing.rules.order import largest
from stockpot.mixing.rules.task_vectors import (
    Magnitudes,
    Shares,
    TrimmedTaskVectors,
    in_threads,
    per_model,
)
from stockpot.tensors.trim import Trim


@final
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(TrimmedTaskVectors):
    """θ₀ + λ Σ wᵢ·mᵢ⊙τᵢ, where mᵢ leaves out the largest and the smallest entries of each tensor.

    Of n entries the ⌊drop·n⌋ largest are left out, and the next ⌊keep·n⌋ are kept. Where both
    together are more than n, fewer of the largest are left out.

    Attributes:
        drop: share of the largest entries that is left out.

    Reference: Davari and Belilovsky 2023, arXiv 2312.06795, §3.
    """

    name = "breadcrumbs"

    keep: Shares = option(0.1, help="Share of the entries of a tensor that is kept.")
    drop: Shares = option(0.01, help="Share of the largest entries that is left out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.drop, Sequence):
            object.__setattr__(self, "drop", tuple(self.drop))
        drops = self.drop if isinstance(self.drop, tuple) else (self.drop,)
        if not all(0 <= drop < 1 for drop in drops):
            raise RecipeError(f"drop is {self.drop}: expected shares of the entries, 0 to below 1")

    def findings(self, tensors: Sequence[TensorPlan]) -> dict[Any, Any]:
        """(position, tensor) → least and largest magnitude that are kept."""
        jobs = per_model(tensors)
        found = in_threads(self._bounds, jobs)
        return {
            (t.positions[i], t.source.name): one for (t, i), one in zip(jobs, found, strict=True)
        }

    def _bounds(self, job: tuple[TensorPlan, int]) -> tuple[float, float]:
        tensor, i = job
        position, n = tensor.positions[i], tensor.n_items
        keep = self.keep_of(position)
        if keep >= 1:
            return 0.0, math.inf
        drop = self.drop[position] if isinstance(self.drop, tuple) else self.drop
        n_kept = int(keep * n)
        n_below = max(0, n - n_kept - int(drop * n))
        if n_kept == 0:
            return math.inf, 0.0
        ranks = [n - n_below, n - n_below - n_kept + 1]
        least, most = largest(Magnitudes([tensor], position), ranks)
        return least, most

    def trim(self, tensor: TensorPlan, i: int, start: int, stop: int) -> Trim:
        """See `TrimmedTaskVectors.trim`."""
        del start, stop
        least, most = self.prepared[tensor.positions[i], tensor.source.name]
        return Trim(least=least, most=most)
