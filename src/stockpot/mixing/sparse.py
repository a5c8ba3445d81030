"""Pruned ingredients: one mask in, the same mask out; different masks are refused or pruned again.

A weight that is zero in every ingredient is zero in their average, and one that is zero in some of
them is not. So the average of models with different masks is as dense as the masks differ, without
any error. docs/design/sparse-ingredients.md has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.errors import MaskMismatchError, Problem
from stockpot.formats.base import Checkpoint
from stockpot.formats.zeros import Zeros, nonzero
from stockpot.mixing.ingredients import Ingredients, LeftOut
from stockpot.mixing.mask import Mask
from stockpot.mixing.mixture import Mixture
from stockpot.tensors.rounding import widen
from stockpot.train.sparse.selectors import Magnitude, SemiStructured

_PRUNED_ABOVE = 0.01
"""A tensor belongs to the mask if a greater share of it is zero in a sparse ingredient."""
_SLACK = 1e-4
"""Sparsity that may be lost before masks count as different: weights that underflowed to zero."""


class NonzeroMask:
    """The mask of weights that are not zero in some of `checkpoints`, made when it is asked for.

    It takes no memory for itself, as a `Mask` would, and has the fingerprint of an equal one.

    Args:
        checkpoints: of one layout.
        names: the tensors that it covers.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> None:
        self._checkpoints = tuple(checkpoints)
        self._names = dict.fromkeys(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        """True where tensor `name` is not zero in some of the checkpoints; of its shape."""
        first = self._checkpoints[0][name]
        kept = np.zeros(first.numel, np.bool_)
        for checkpoint in self._checkpoints:
            kept |= nonzero(checkpoint.raw(name), first.dtype)
        return kept.reshape(first.shape)

    @cached_property
    def _summary(self) -> tuple[str, float]:
        state, n_kept, total = xxhash.xxh3_128(), 0, 0
        for name in sorted(self._names):
            kept = self.kept(name)
            state.update(f"{name}\0{kept.shape}\0".encode())
            state.update(np.packbits(kept).data)
            n_kept += int(np.count_nonzero(kept))
            total += kept.size
        return state.hexdigest(), 1 - n_kept / max(1, total)

    @property
    def fingerprint(self) -> str:
        """That of the `Mask` that keeps the same weights."""
        return self._summary[0]

    @property
    def sparsity(self) -> float:
        """Share of the covered weights that is zero."""
        return self._summary[1]


@dataclass(frozen=True)
class SharedSparsity:
    """What the averages of pruned ingredients are masked with.

    Attributes:
        ingredients: the pruned ingredients, and dense ones if masks may differ.
        names: the pruned tensors.
        sparsity: of the ingredients in these tensors, 0..1; of the sparsest if they differ.
        remaining: what a plain average would leave of it.
        again: zeros that each tensor of an average is to have, where masks differ; else None.
        note: all this in a sentence.
    """

    ingredients: Ingredients
    names: tuple[str, ...]
    sparsity: float
    remaining: float
    again: dict[str, int] | None
    note: str

    @cached_property
    def _shared(self) -> NonzeroMask:
        return NonzeroMask(self.ingredients, self.names)

    def mask_of(self, mixture: Mixture) -> NonzeroMask | Mask | None:
        """The mask that `mixture`, unmasked, is to have.

        None for a mixture of one ingredient, which is that ingredient.
        """
        if mixture.n_mixed < 2:
            return None
        if self.again is None:
            return self._shared
        return Mask({name: self._chosen(mixture, name, n) for name, n in self.again.items()})

    def _chosen(self, mixture: Mixture, name: str, n_zeros: int) -> npt.NDArray[np.bool_]:
        """The largest magnitudes of an average; two of four where that is the pattern."""
        spec = mixture[name]
        values = widen(mixture.raw(name).view(spec.dtype.storage), spec.dtype.value)
        given = {name: np.asarray(values).reshape(spec.shape)}
        if 2 * n_zeros == spec.numel and self._is_two_of_four(name):
            return SemiStructured().select(given, 0.5).kept(name)
        return Magnitude().select(given, n_zeros / spec.numel).kept(name)

    def _is_two_of_four(self, name: str) -> bool:
        zeros = self.ingredients.zeros
        sparse = [] if zeros is None else [self.ingredients[i] for i in zeros.sparse]
        return all(_two_of_four(one, name) for one in sparse)


def _two_of_four(checkpoint: Checkpoint, name: str) -> bool:
    spec = checkpoint[name]
    if spec.shape[1] % 4:
        return False
    kept = nonzero(checkpoint.raw(name), spec.dtype).reshape(spec.shape)
    blocks = np.moveaxis(kept, 1, -1).reshape(-1, 4)
    return bool((np.count_nonzero(blocks, axis=1) <= 2).all())


def pruned_alike(ingredients: Ingredients) -> tuple[Ingredients, SharedSparsity | None]:
    """Whether `ingredients` are pruned, and if so with one mask; `on_mismatch` decides if not.

    Dense ingredients come back as they are, after a few pages of each tensor were read.

    Returns:
        The ingredients, without those of other masks if they are to be left out, and what their
        averages are masked with.

    Raises:
        MaskMismatchError: masks differ; says what sparsity an average would have.
    """
    zeros = ingredients.zeros
    if zeros is None:
        return ingredients, None
    found = _Found.of(ingredients, zeros)
    if found.lost <= _SLACK:
        return ingredients, found.shared()
    if ingredients.on_mismatch == "re-prune":
        return ingredients, found.pruned_again()
    if ingredients.on_mismatch == "leave-out":
        return pruned_alike(_largest_group(ingredients, zeros, found))
    raise found.error()


@dataclass(frozen=True)
class _Found:
    """Zeros of ingredients, over the tensors that pruning took weights from."""

    ingredients: Ingredients
    zeros: Zeros
    names: tuple[str, ...]

    @classmethod
    def of(cls, ingredients: Ingredients, zeros: Zeros) -> _Found:
        sparse = [zeros.counts[i] for i in zeros.sparse]
        names = [
            name
            for name, size in zeros.sizes.items()
            if any(_PRUNED_ABOVE * size < count[name] for count in sparse)
            and any(count[name] < size for count in zeros.counts)
        ]
        return cls(ingredients, zeros, tuple(names))

    def share(self, count: dict[str, int]) -> float:
        """Of zeros in `count`."""
        return sum(count[name] for name in self.names) / self.n_weights

    @property
    def n_weights(self) -> int:
        return max(1, sum(self.zeros.sizes[name] for name in self.names))

    @property
    def remaining(self) -> float:
        return self.share(self.zeros.common)

    @property
    def most(self) -> float:
        return max(self.share(count) for count in self.zeros.counts)

    @property
    def lost(self) -> float:
        return self.most - self.remaining

    def shared(self) -> SharedSparsity:
        n = self.n_weights
        n_more = round(self.lost * n)
        more = f" (and {n_more} more of them in some ingredients)" if n_more else ""
        note = (
            f"the ingredients are pruned with one mask, which the average keeps: "
            f"{100 * self.remaining:.2f} % of {n:,} weights are zero{more}"
        )
        return SharedSparsity(self.ingredients, self.names, self.most, self.remaining, None, note)

    def pruned_again(self) -> SharedSparsity:
        sparse = [self.zeros.counts[i] for i in self.zeros.sparse]
        again = {n: round(sum(count[n] for count in sparse) / len(sparse)) for n in self.names}
        sparsity = self.share(again)
        note = (
            f"the masks of the ingredients differ, and {100 * self.remaining:.2f} % of an average "
            f"would be zero: averages are pruned again, by magnitude, to {100 * sparsity:.2f} % "
            "in the shares that the tensors have in the ingredients; they were not retrained"
        )
        return SharedSparsity(self.ingredients, self.names, sparsity, self.remaining, again, note)

    def error(self) -> MaskMismatchError:
        problems = self.problems()
        lines = [f"  {p.ingredient}  {p.found}" for p in problems]
        return MaskMismatchError(
            "\n".join(
                [
                    f"the ingredients are pruned with different masks: {100 * self.remaining:.1f} "
                    f"% of the weights would be zero in an average, and {100 * self.most:.1f} % "
                    "are in the sparsest of:",
                    *lines,
                    "Average models that were retrained with one mask (stockpot sparse makes "
                    "them); or prune averages again, to the sparsity of the ingredients: "
                    'on_mismatch="re-prune" (--on-mismatch re-prune); or keep the largest group '
                    'with one mask: "leave-out".',
                ]
            ),
            problems,
        )

    def problems(self) -> list[Problem]:
        groups = list(dict.fromkeys(self.zeros.patterns))
        expected = f"zeros where the others have them ({100 * self.most:.2f} %)"
        found = []
        for path, count, pattern in zip(
            (one.path for one in self.ingredients),
            self.zeros.counts,
            self.zeros.patterns,
            strict=True,
        ):
            dense = " (dense)" if self.share(count) < _PRUNED_ABOVE else ""
            text = f"{100 * self.share(count):.2f} % zero{dense}, mask {groups.index(pattern) + 1}"
            found.append(Problem(path, None, text, expected))
        return found


def _largest_group(ingredients: Ingredients, zeros: Zeros, found: _Found) -> Ingredients:
    """The largest group of sparse ingredients with one mask, the earliest of equals."""
    patterns = [zeros.patterns[i] for i in zeros.sparse]
    chosen = max(dict.fromkeys(patterns), key=patterns.count)
    kept = [i for i in zeros.sparse if zeros.patterns[i] == chosen]
    group = Ingredients(
        [ingredients[i] for i in kept],
        base=ingredients.base,
        on_mismatch="common" if len(ingredients.averaged) < len(ingredients.specs) else "leave-out",
    )
    problems = found.problems()
    group.left_out = (
        *ingredients.left_out,
        *(
            LeftOut(ingredients[i].path, (problems[i],))
            for i in range(len(ingredients))
            if i not in kept
        ),
    )
    return group
