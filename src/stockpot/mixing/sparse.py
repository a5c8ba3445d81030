"""Pruned ingredients: one mask in, the same mask out; different masks are refused.

A weight that is zero in every ingredient is zero in their average, and one that is zero in some of
them is not. So the average of models with different masks is as dense as the masks differ, without
any error. docs/design/sparse-ingredients.md has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.errors import MaskMismatchError, Problem
from stockpot.formats.zeros import Zeros
from stockpot.mixing.ingredients import Ingredients, LeftOut
from stockpot.mixing.mask import NonzeroMask
from stockpot.mixing.mixture import Mixture

_PRUNED_ABOVE = 0.01
"""A tensor belongs to the mask if a greater share of it is zero in a sparse ingredient."""
_SLACK = 1e-4
"""Sparsity that may be lost before masks count as different: weights that underflowed to zero."""


@dataclass(frozen=True)
class SharedMask:
    """What the averages of pruned ingredients are masked with.

    Attributes:
        mask: the weights that are not zero in some ingredient, over the pruned tensors.
        note: how sparse the ingredients are, in a sentence.
    """

    mask: NonzeroMask
    note: str

    def mask_of(self, mixture: Mixture) -> NonzeroMask | None:
        """The mask that `mixture`, unmasked, is to have.

        None for a mixture of one ingredient, which is that ingredient.
        """
        return None if mixture.n_mixed < 2 else self.mask


def shared_mask(ingredients: Ingredients) -> tuple[Ingredients, SharedMask | None]:
    """The mask that pruned ingredients share; `on_mismatch` decides where they differ.

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
    if ingredients.on_mismatch == "leave-out":
        return shared_mask(_largest_group(ingredients, zeros, found))
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
        """Fraction of zeros in a checkpoint with `count` of them by tensor."""
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

    def shared(self) -> SharedMask:
        n_more = round(self.lost * self.n_weights)
        more = f" (and {n_more} more of them in some ingredients)" if n_more else ""
        note = (
            f"the ingredients are pruned with one mask, which the average keeps: "
            f"{100 * self.remaining:.2f} % of {self.n_weights:,} weights are zero{more}"
        )
        return SharedMask(NonzeroMask(self.ingredients, self.names), note)

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
                    "them); or keep the largest group with one mask: "
                    'on_mismatch="leave-out" (--on-mismatch leave-out).',
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
        reconcile=ingredients.reconcile,
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
