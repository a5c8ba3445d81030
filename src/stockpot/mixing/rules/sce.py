"""SCE: select elements by their variance, weigh models by what is left, erase the other sign."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import Raw, TensorPlan
from stockpot.mixing.rules.order import Blocks, largest
from stockpot.mixing.rules.task_vectors import F64, TaskVectorRule, in_threads, stored_blocks
from stockpot.tensors.changes import merge, squares, variances
from stockpot.tensors.trim import NO_TRIM, Merging, Term


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
        sums = np.zeros(len(tensor.sources))
        for *values, base in stored_blocks(tensor, range(len(tensor.inputs))):
            sums += [float(row.sum()) for row in squares(values, base, least)]
        total = float(sums.sum())
        if total / n < self.floor or total == 0:
            return least, [1.0 / len(sums)] * len(sums)
        return least, (sums / total).tolist()

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        del start
        *values, base = tensor.stored(blocks)
        least, weights = self.prepared[tensor.source.name]
        # The sign is that of the plain sum, + where it is 0; the weights come afterwards.
        how = Merging(
            weights=weights, normalise=True, weigh=True, scale=self.scale, least_variance=least
        )
        terms = [Term(value, NO_TRIM, 1.0) for value in values]
        merge(terms, base, how, lambda: 1, tensor.stored_output(out))


def _variances(tensor: TensorPlan) -> Iterator[F64]:
    for *values, base in stored_blocks(tensor, range(len(tensor.inputs))):
        yield variances(values, base)
