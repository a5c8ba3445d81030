"""SCE: select elements by their variance, weigh models by what is left, erase the other sign."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import TensorPlan
from stockpot.mixing.rules.order import Blocks, largest
from stockpot.mixing.rules.task_vectors import (
    F64,
    TaskVectorRule,
    changes_of,
    in_threads,
)
from stockpot.tensors.changes import elected, variance


@final
@dataclass(frozen=True, kw_only=True)
class Sce(TaskVectorRule):
    """θ₀ + λ · a mean of the task vectors, tensor by tensor.

    *Select* the share `keep` of those elements whose values differ between the models that differ
    most, by their variance. *Calculate* the weight of each model: its sum of squares over them,
    divided by that of all. *Erase* entries that have not the sign of the sum, and take the weighted
    mean of the others. Weights of the ingredients have no say.

    Attributes:
        keep: share of the elements of a tensor that is selected.
        floor: mean square of all task vectors below which all models weigh the same; mergekit's
            is 1e-6, which moves of a few thousandths do not reach.

    Reference: Wan et al. 2024, arXiv 2408.07990, §3.2; its public code.
    """

    name = "sce"

    keep: float = option(0.1, help="Share of the elements that is selected, by their variance.")
    floor: float = option(0.0, help="Mean square below which all models weigh the same.")
    prepared: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise RecipeError(f"keep is {self.keep}: expected a share of the elements, 0 to 1")

    def prepare(self, tensors: Sequence[TensorPlan]) -> Sce:
        """The least variance that is selected, and the weight of each model, for each tensor."""
        found = in_threads(self._measured, tensors)
        names = [tensor.source.name for tensor in tensors]
        return replace(self, prepared=dict(zip(names, found, strict=True)))

    def _measured(self, tensor: TensorPlan) -> tuple[float, list[float]]:
        n, least = tensor.n_items, 0.0
        if self.keep == 0 or n == 0:
            return math.inf, [1.0 / len(tensor.sources)] * len(tensor.sources)
        if self.keep < 1:
            n_different = sum(int(np.count_nonzero(v)) for v in _variances(tensor))
            rank = int(n_different * self.keep)
            least = largest(Blocks(lambda: _variances(tensor), n), [rank])[0] if rank else math.inf
        squares = np.zeros(len(tensor.sources))
        for changes in _together(tensor):
            chosen = variance(changes) >= least
            squares += [float((change[chosen] ** 2).sum()) for change in changes]
        total = float(squares.sum())
        if total / n < self.floor or total == 0:
            return least, [1.0 / len(squares)] * len(squares)
        return least, (squares / total).tolist()

    def merged(self, tensor: TensorPlan, changes: Sequence[F64], out: F64) -> F64:
        """See `TaskVectorRule.merged`."""
        least, weights = self.prepared[tensor.source.name]
        chosen = variance(changes) >= least
        for change in changes:
            np.multiply(change, chosen, out=change)
        # The sign is that of the plain sum, + where it is 0; the weights come afterwards.
        return elected(changes, weights, lambda: 1, normalise=True, weigh=True, out=out)


def _together(tensor: TensorPlan) -> Iterator[tuple[F64, ...]]:
    yield from zip(*(changes_of(tensor, i) for i in range(len(tensor.sources))), strict=True)


def _variances(tensor: TensorPlan) -> Iterator[F64]:
    for changes in _together(tensor):
        yield variance(changes)
