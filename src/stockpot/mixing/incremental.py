"""Means of a growing set of ingredients, from a running sum: each ingredient is read O(1) times.

Floating-point sums depend on their order, and a mixture adds its ingredients in the canonical one.
So a mean from the running sum is taken only where every sum within its error rounds to the same
output; the few elements near a rounding boundary are computed from all ingredients as `Mixture`
does. The result is that of `Mixture.raw`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import RecipeError
from stockpot.mixing.coefficients import Coefficients
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.mixture import Mixture
from stockpot.mixing.rules import PIECE, TensorRule
from stockpot.tensors.rounding import finite, narrow, widen
from stockpot.tensors.spec import DType
from stockpot.tensors.sums import mix

_UNIT = 2.0**-53
"""Relative error of one float64 operation."""
_F64 = npt.NDArray[np.float64]


class RunningSum:
    """The sum of some ingredients in float64. It has state, because that is what saves the reads.

    It takes eight bytes for each averaged element. Tensors of float64, whose sums need more than
    float64, are left to `Mixture`. One thread at a time may read mixtures made from it.

    Args:
        ingredients: what is summed.
        members: positions of the first ones.
        dtype: of the outputs; default: as in the ingredients.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        members: Iterable[int] = (),
        *,
        dtype: DType | str | None = None,
    ) -> None:
        self.ingredients = ingredients
        self.dtype = dtype
        self.members: list[int] = []
        self.n_operations = 0
        repeated = {name for group in ingredients.tied for name in group[1:]}
        self.sums: dict[str, _F64] = {
            name: np.zeros(spec.numel)
            for name, spec in ingredients.specs.items()
            if name in ingredients.averaged
            and name not in repeated
            and spec.dtype.mixable
            and spec.dtype is not DType.F64
        }
        self.largest: dict[str, _F64] = {
            name: np.zeros(-(-values.size // PIECE)) for name, values in self.sums.items()
        }
        self.scratch = np.empty((2, PIECE))
        for member in members:
            self.add(member)

    def add(self, index: int) -> None:
        """Put the ingredient at `index` in; it is read once."""
        self._change(index, 1)
        self.members.append(index)

    def remove(self, index: int) -> None:
        """Take the ingredient at `index` out.

        Raises:
            RecipeError: it is not in.
        """
        if index not in self.members:
            raise RecipeError(f"ingredient {index} is not in the sum; there are {self.members}")
        self.members.remove(index)
        self._change(index, -1)

    def with_(self, index: int) -> IncrementalMixture:
        """The mean of the members and the ingredient at `index`."""
        return IncrementalMixture(self, [*self.members, index], index, 1)

    def without(self, index: int) -> IncrementalMixture:
        """The mean of the members but the ingredient at `index`."""
        return IncrementalMixture(self, [i for i in self.members if i != index], index, -1)

    def values(self, name: str, index: int, start: int, stop: int) -> _F64:
        """Elements `start` to `stop` of one ingredient's tensor, in float64."""
        spec = self.ingredients.specs[name]
        raw = self.ingredients[index].raw(name).view(spec.dtype.storage)
        return widen(raw[start:stop], spec.dtype.value)

    def _change(self, index: int, sign: int) -> None:
        for name, total in self.sums.items():
            for piece, start in enumerate(range(0, total.size, PIECE)):
                stop = min(start + PIECE, total.size)
                values = self.values(name, index, start, stop)
                total[start:stop] += sign * values
                largest = float(np.abs(values).max(initial=0.0))
                self.largest[name][piece] = max(self.largest[name][piece], largest)
        self.n_operations += 1


class IncrementalMixture(Mixture):
    """A uniform mixture computed from a running sum and one ingredient more or less.

    It holds as long as the running sum does not change.
    """

    def __init__(self, running: RunningSum, members: list[int], index: int, sign: int) -> None:
        k = len(running.ingredients)
        chosen, share = set(members), 1.0 / max(1, len(members))
        shares = [share if i in chosen else 0.0 for i in range(k)]
        super().__init__(running.ingredients, Coefficients.per_model(shares), dtype=running.dtype)
        self._running, self._index, self._sign = running, index, sign
        self._n_members = len(chosen)
        self._version = running.n_operations

    def _make(self, name: str, data: npt.NDArray[np.uint8]) -> None:
        rule = self.rule(name)
        total = self._running.sums.get(rule.source.name)
        usable = self._n_members > 1 and self._version == self._running.n_operations
        if total is None or rule.kind != "mix" or not usable:
            super()._make(name, data)
            return
        out_dtype = rule.spec.dtype.value
        result: npt.NDArray[Any] = data.view(rule.spec.dtype.storage)
        raws: list[npt.NDArray[Any]] | None = None
        for piece, start in enumerate(range(0, total.size, PIECE)):
            stop = min(start + PIECE, total.size)
            low, high = self._bracket(rule, piece, start, stop)
            result[start:stop] = low
            at = np.flatnonzero(low.view(_bits(low)) != high.view(_bits(high)))
            if at.size:
                if raws is None:
                    raws = [c.raw(name).view(rule.source.dtype.storage) for c in rule.sources]
                blocks = [raw[start:stop][at] for raw in raws]
                if not all(finite(block, rule.source.dtype.value) for block in blocks):
                    super()._make(name, data)  # which says what is wrong, and where
                    return
                result[start + at] = mix(
                    blocks, rule.coefficients, dtype=rule.source.dtype.value, out_dtype=out_dtype
                )
        if not finite(result, out_dtype):
            super()._make(name, data)

    def _bracket(
        self, rule: TensorRule, piece: int, start: int, stop: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Elements rounded from below and from above the true sum of any order."""
        running, name, k = self._running, rule.source.name, self._n_members
        # Arrays of this size cost more to allocate than to fill.
        mean, edge = (scratch[: stop - start] for scratch in running.scratch)
        raw = running.ingredients[self._index].raw(name).view(rule.source.dtype.storage)
        combine = np.add if self._sign > 0 else np.subtract
        with np.errstate(over="ignore", invalid="ignore"):
            if rule.source.dtype is DType.BF16:
                mean[:] = widen(raw[start:stop], "BF16")
            else:
                mean[:] = raw[start:stop]
            own = max(float(mean.max(initial=0.0)), -float(mean.min(initial=0.0)))
            largest = max(float(running.largest[name][piece]), own)
            combine(running.sums[name][start:stop], mean, out=mean)
            np.divide(mean, k, out=mean)
            # Partial sums stay below n·largest, and each of n operations rounds once; the
            # canonical sum has its own k roundings, and both divide.
            n = running.n_operations + 1 + k
            error = 4 * _UNIT * (n * n + n) * largest / k
            out_dtype = rule.spec.dtype.value
            low = narrow(np.subtract(mean, error, out=edge), out_dtype)
            return low, narrow(np.add(mean, error, out=edge), out_dtype)


def _bits(block: npt.NDArray[Any]) -> npt.DTypeLike:
    return f"<u{block.dtype.itemsize}"
