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
    F64,
    TrimmedTaskVectors,
    changes_of,
    in_threads,
    magnitudes,
    per_model,
)


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
        n = sum(t.n_items for t in tensors if position in t.positions)
        rank = max(1, int(keep * n))
        return largest(lambda: magnitudes(tensors, position), n, [rank])[0] if n else 0.0

    def trimmed(self, tensor: TensorPlan, i: int, change: F64, start: int) -> F64:
        """See `TrimmedTaskVectors.trimmed`."""
        name = "" if self.per == "model" else tensor.source.name
        return _trim(change, self.prepared[tensor.positions[i], name])

    def tie_sign(self, tensor: TensorPlan) -> Callable[[], int]:
        """That of the majority of the network's elements, or + where tensors stand alone."""
        found: Callable[[], int] = self.prepared.get(("sign",), lambda: 1)
        return found


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
        sources = [changes_of(tensor, i) for i in range(len(tensor.sources))]
        for blocks in zip(*sources, strict=True):
            total = np.zeros(blocks[0].shape)
            for block, position, weight in zip(
                blocks, tensor.positions, tensor.coefficients, strict=True
            ):
                total += weight * _trim(block, self._least[position, ""])
            votes += int(np.sign(total).sum())
        return votes


def _trim(change: F64, least: float) -> F64:
    kept: F64 = change * (np.abs(change) >= least)
    return kept
