"""TIES: trim, elect a sign, and take the mean of those that agree."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from stockpot._options import option
from stockpot.mixing.rules.base import TensorPlan
from stockpot.mixing.rules.order import largest
from stockpot.mixing.rules.task_vectors import (
    Magnitudes,
    TrimmedTaskVectors,
    in_threads,
    per_model,
    stored_pairs,
)
from stockpot.tensors.changes import finite_change, sum_of
from stockpot.tensors.trim import Trim


@final
@dataclass(frozen=True, kw_only=True)
class Ties(TrimmedTaskVectors):
    """θ₀ + λ · the mean of the largest entries of the task vectors that have the elected sign.

    Of each task vector of n entries, the ⌊keep·n⌋ largest are kept, and all that are as large as
    the least of them. Entries that cancel out exactly take the sign of the majority of elements.

    Attributes:
        per: `"model"` trims the whole task vector, as the paper does: an order statistic of the
            network, streamed, and then a second pass that merges. `"tensor"` trims each tensor and
            lets + win where entries cancel out, as mergekit does.

    Reference: Yadav et al. 2023, arXiv 2306.01708, algorithm 1.
    """

    name = "ties"

    signs: Literal["all", "elected"] = option("elected", help="Leave out those of the other sign.")
    normalise: bool = option(True, help="Take the mean of what is kept, and not the sum.")
    per: Literal["model", "tensor"] = option("model", help="Trim the network, or each tensor.")

    def findings(self, tensors: Sequence[TensorPlan]) -> dict[Any, Any]:
        """(position, tensor) → least magnitude that is kept; ("sign",) → sign of the majority."""
        if self.per == "tensor":
            jobs = per_model(tensors)
            found = in_threads(lambda job: self._least([job[0]], job[0].positions[job[1]]), jobs)
            return {(t.positions[i], t.source.name): f
                    for (t, i), f in zip(jobs, found, strict=True)}  # fmt: skip
        positions = sorted({p for tensor in tensors for p in tensor.positions})
        least = in_threads(lambda position: self._least(tensors, position), positions)
        kept: dict[Any, Any] = {(p, ""): one for p, one in zip(positions, least, strict=True)}
        return {**kept, ("sign",): _Majority(kept, tensors)}

    def _least(self, tensors: Sequence[TensorPlan], position: int) -> float:
        keep = self.keep_of(position)
        if keep in (0, 1):
            return math.inf if keep == 0 else 0.0
        numbers = Magnitudes(tensors, position)
        rank = max(1, int(keep * numbers.n))
        return largest(numbers, [rank])[0] if numbers.n else 0.0

    def trim(self, tensor: TensorPlan, i: int, start: int, stop: int) -> Trim:
        """See `TrimmedTaskVectors.trim`."""
        del start, stop
        name = "" if self.per == "model" else tensor.source.name
        return Trim(least=self.prepared[tensor.positions[i], name])

    def tie_sign(self, tensor: TensorPlan) -> int:
        """That of the majority of the network's elements, or + where tensors stand alone."""
        found: Callable[[], int] = self.prepared.get(("sign",), lambda: 1)
        return found()


class _Majority:
    """The sign that most elements of the network elect.

    It has state, because it takes a pass over all models and is rarely asked for: only where
    entries cancel out exactly.
    """

    def __init__(self, least: Mapping[Any, float], tensors: Sequence[TensorPlan]) -> None:
        self._least, self._tensors = least, tensors
        self._lock = threading.Lock()
        self._sign = 0

    def __call__(self) -> int:
        """1 or −1."""
        with self._lock:
            if self._sign == 0:
                self._sign = 1 if sum(in_threads(self._votes, self._tensors)) >= 0 else -1
        return self._sign

    def _votes(self, tensor: TensorPlan) -> int:
        votes = 0
        trims = [Trim(least=self._least[position, ""]) for position in tensor.positions]
        sources = [stored_pairs(tensor, i) for i in range(len(tensor.sources))]
        for pairs in zip(*sources, strict=True):
            terms = [
                weight * finite_change(value, base, trim)
                for (value, base), trim, weight in zip(
                    pairs, trims, tensor.coefficients, strict=True
                )
            ]
            votes += int(np.sign(sum_of(terms)).sum())
        return votes
