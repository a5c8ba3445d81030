"""Which weights are pruned, and how many: each selector turns weights and a target into a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stockpot.errors import RecipeError
from stockpot.mixing.mask import Mask, Values, as_array
from stockpot.train.sparse.prunable import Groups, group_views, whole_rows

SELECTORS = ("magnitude", "uniform", "random", "structured", "N:M")
"""What `parse_selector` knows; `N:M` stands for two numbers, such as `2:4`."""


class Selector(Protocol):
    """A choice of weights to prune; a frozen value, so that a record can hold it.

    Ties are broken by index: of equal weights, those that come first are pruned first, in the order
    in which the tensors are given. What `previous` has pruned stays pruned.
    """

    @property
    def name(self) -> str:
        """As options and records name it; `parse_selector` reads it."""
        ...

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """The mask of `values` (name → floating array) with `sparsity` zeros.

        Raises:
            RecipeError: this sparsity cannot be made, or `previous` is sparser.
        """
        ...


@dataclass(frozen=True)
class Magnitude:
    """Prune the smallest magnitudes of all tensors together: round(s·N) zeros, to one weight.

    >>> values = {"a": np.array([3.0, -1.0]), "b": np.array([0.5, 2.0])}
    >>> mask = Magnitude().select(values, 0.5)
    >>> mask.kept("a").tolist(), mask.kept("b").tolist()
    ([True, False], [False, True])
    """

    name = "magnitude"

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """See `Selector.select`."""
        return _lowest({n: np.abs(as_array(v)) for n, v in values.items()}, sparsity, previous)


@dataclass(frozen=True)
class UniformMagnitude:
    """Prune the smallest magnitudes of each tensor by itself: round(s·N) zeros in every one."""

    name = "uniform"

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """See `Selector.select`."""
        return Mask(
            {
                name: _lowest({name: np.abs(as_array(value))}, sparsity, previous).kept(name)
                for name, value in values.items()
            }
        )


@dataclass(frozen=True)
class Random:
    """Prune at random, all tensors together; with one seed, masks of rising sparsity are nested."""

    seed: int = 0

    name = "random"

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """See `Selector.select`."""
        rng = np.random.default_rng(self.seed)
        scores = {n: rng.random(tuple(v.shape), np.float32) for n, v in values.items()}
        return _lowest(scores, sparsity, previous)


@dataclass(frozen=True)
class Structured:
    """Prune whole groups with the smallest L2 norm per weight: filters, neurons, attention heads.

    Groups of different sizes are compared by ‖g‖₂/√|g|. Every group family keeps at least one
    member, and tensors in no group (a classifier, whose rows are the classes) stay dense, while
    their weights count: so the sparsity differs from the target by at most one group.

    Attributes:
        groups: families of groups, as `find_groups` finds them in a model; None makes every row
            of every tensor (a convolution's filters, a linear layer's neurons) a group.
    """

    groups: tuple[Groups, ...] | None = None

    name = "structured"

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """See `Selector.select`."""
        arrays = {name: as_array(value) for name, value in values.items()}
        total = sum(array.size for array in arrays.values())
        kept = _kept_before(arrays, previous)
        families = whole_rows(arrays) if self.groups is None else self.groups
        order = _weakest_first(families, arrays, kept)
        target = n_zeros(sparsity, total)
        pruned = total - sum(int(k.sum()) for k in kept.values())
        _refuse_fewer(pruned, target, total)
        for family, index, size in order:
            # The nearer of the two counts: without this group, or with it.
            if pruned + size - target > target - pruned:
                break
            for view in group_views(families[family], index, kept):
                view[...] = False
            pruned += size
        largest = max((size for _, _, size in order), default=0)
        if target - pruned > largest:
            raise RecipeError(
                f"structured pruning reaches a sparsity of {pruned / total:.4f} here, and "
                f"{sparsity:g} was asked for: every family keeps one group and the head stays "
                "dense; ask for less, or use magnitude"
            )
        return Mask(kept)


@dataclass(frozen=True)
class SemiStructured:
    """Keep the `n` largest magnitudes of every `m` neighbours along the inputs, such as 2 of 4.

    Neighbours lie along dimension 1: the input features of a linear layer, the input channels of a
    convolution at one place of its kernel. Tensors whose inputs do not divide by `m` stay dense and
    are not in the mask, whose sparsity is therefore exactly 1 − n/m.

    Reference: Mishra et al. 2021, arXiv 2104.08378.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise RecipeError(f"{self.n}:{self.m} is no pattern: expected N:M with 1 <= N < M")

    @property
    def name(self) -> str:
        """Such as `2:4`."""
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The only one that it makes."""
        return 1 - self.n / self.m

    def select(
        self, values: Mapping[str, Values], sparsity: float, previous: Mask | None = None
    ) -> Mask:
        """See `Selector.select`."""
        if abs(sparsity - self.sparsity) > 1e-9:
            raise RecipeError(
                f"{self.name} keeps {self.n} of {self.m} weights: its sparsity is "
                f"{self.sparsity:g}, and {sparsity:g} was asked for"
            )
        fitting = {
            name: as_array(value)
            for name, value in values.items()
            if value.ndim >= 2 and value.shape[1] % self.m == 0
        }
        if not fitting:
            raise RecipeError(
                f"no tensor has inputs that divide by {self.m}, so nothing can be pruned to "
                f"{self.name}"
            )
        return Mask({name: self._pattern(name, v, previous) for name, v in fitting.items()})

    def _pattern(
        self, name: str, values: npt.NDArray[np.floating], previous: Mask | None
    ) -> npt.NDArray[np.bool_]:
        scores = np.abs(values)
        if previous is not None and name in previous:
            scores = np.where(previous.kept(name), scores, -1)
        rows = np.moveaxis(scores, 1, -1)
        blocks = rows.reshape(-1, self.m)
        kept = np.ones(blocks.shape, np.bool_)
        # Stable: of equal weights the first are pruned.
        order = np.argsort(blocks, axis=1, kind="stable")
        np.put_along_axis(kept, order[:, : self.m - self.n], False, axis=1)
        return np.ascontiguousarray(np.moveaxis(kept.reshape(rows.shape), -1, 1))


def phase_sparsities(sparsity: float, n_phases: int) -> tuple[float, ...]:
    """Sparsity after each phase, when every phase prunes the same share of what remains.

    s_p = 1 − (1 − s)^(p/n), for p = 1 … n; the last one is `sparsity` itself.

    >>> [round(s, 3) for s in phase_sparsities(0.98, 3)]
    [0.729, 0.926, 0.98]

    Raises:
        RecipeError: a sparsity outside [0, 1), or no phase.

    Reference: Zimmer et al. 2023, arXiv 2306.16788.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(
            f"sparsity is {sparsity}, expected a fraction from 0 (dense) to below 1, such as 0.9"
        )
    if n_phases < 1:
        raise RecipeError(f"{n_phases} phases, expected at least 1 (1 is one-shot)")
    earlier = (1 - (1 - sparsity) ** (p / n_phases) for p in range(1, n_phases))
    return (*earlier, sparsity)


def n_zeros(sparsity: float, n_weights: int) -> int:
    """Zeros that make `n_weights` weights as sparse as `sparsity`: round(s·N), halves to even.

    >>> n_zeros(0.9, 15)
    14
    """
    return round(sparsity * n_weights)


def gradual_sparsity(sparsity: float, done: float) -> float:
    """Sparsity at the fraction `done` (clipped to [0, 1]) of a cubic ramp: s·(1 − (1 − done)³).

    >>> gradual_sparsity(0.8, 0.5), gradual_sparsity(0.8, 2)
    (0.7000000000000001, 0.8)

    Reference: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
    return float(sparsity * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3))


def parse_selector(
    text: str, *, seed: int = 0, groups: tuple[Groups, ...] | None = None
) -> Selector:
    """The selector that an option names: one of `SELECTORS`, with two numbers for `N:M`.

    >>> parse_selector("2:4"), parse_selector("random", seed=3)
    (SemiStructured(n=2, m=4), Random(seed=3))

    Raises:
        RecipeError: there is none of this name.
    """
    plain: dict[str, Selector] = {
        "magnitude": Magnitude(),
        "uniform": UniformMagnitude(),
        "random": Random(seed),
        "structured": Structured(groups),
    }
    if text in plain:
        return plain[text]
    n, colon, m = text.partition(":")
    if colon and n.isdecimal() and m.isdecimal():
        return SemiStructured(int(n), int(m))
    raise RecipeError(f"selector is {text!r}, expected one of {', '.join(SELECTORS)} (such as 2:4)")


def _lowest(
    scores: Mapping[str, npt.NDArray[np.floating]], sparsity: float, previous: Mask | None
) -> Mask:
    """Prune the round(s·N) lowest of `scores` (≥ 0) over all tensors, ties by index."""
    _refuse_non_finite(scores)
    flat = np.concatenate(
        [
            _floor_of_pruned(name, array, previous).reshape(-1)
            for name, array in scores.items()
        ]
    ) if scores else np.zeros(0)  # fmt: skip
    target = n_zeros(sparsity, flat.size)
    _refuse_fewer(int((flat < 0).sum()), target, flat.size)
    kept = np.ones(flat.size, np.bool_)
    if target > 0:
        limit = np.partition(flat, target - 1)[target - 1]
        kept[flat < limit] = False
        n_ties = target - (flat.size - int(kept.sum()))
        kept[np.flatnonzero(flat == limit)[:n_ties]] = False
    ends = np.cumsum([array.size for array in scores.values()])
    parts = np.split(kept, ends[:-1]) if scores else []
    return Mask({n: p.reshape(scores[n].shape) for n, p in zip(scores, parts, strict=True)})


def _floor_of_pruned(
    name: str, scores: npt.NDArray[np.floating], previous: Mask | None
) -> npt.NDArray[np.floating]:
    """`scores`, below all others where `previous` has pruned."""
    if previous is None or name not in previous:
        return scores
    return np.where(previous.kept(name), scores, -1)


def _kept_before(
    arrays: Mapping[str, npt.NDArray[np.floating]], previous: Mask | None
) -> dict[str, npt.NDArray[np.bool_]]:
    return {
        name: previous.kept(name)
        if previous is not None and name in previous
        else np.ones(array.shape, np.bool_)
        for name, array in arrays.items()
    }


def _weakest_first(
    families: tuple[Groups, ...],
    arrays: Mapping[str, npt.NDArray[np.floating]],
    kept: Mapping[str, npt.NDArray[np.bool_]],
) -> list[tuple[int, int, int]]:
    """(family, group, weights that it still has) of all groups that may be pruned, in order."""
    found: list[tuple[float, int, int, int]] = []
    for number, family in enumerate(families):
        alive = []
        for index in range(family.n_groups):
            size = sum(int(view.sum()) for view in group_views(family, index, kept))
            parts = group_views(family, index, arrays)
            power = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
            if size:
                alive.append(((power / sum(part.size for part in parts)) ** 0.5, index, size))
        # The strongest stays, so that no signal is cut off altogether.
        alive.sort()
        found += [(norm, number, index, size) for norm, index, size in alive[:-1]]
    return [(family, index, size) for _, family, index, size in sorted(found)]


def _refuse_fewer(n_before: int, target: int, total: int) -> None:
    if n_before > target:
        raise RecipeError(
            f"{n_before} of {total} weights are pruned already (sparsity {n_before / total:.4f}), "
            f"and the target has {target}: sparsity can only rise"
        )


def _refuse_non_finite(scores: Mapping[str, npt.NDArray[np.floating]]) -> None:
    wrong = [name for name, array in scores.items() if not np.isfinite(array).all()]
    if wrong:
        raise RecipeError(
            f"{', '.join(wrong[:8])}: NaN or infinity among the weights, which have no magnitude "
            "to prune by; start from another checkpoint"
        )
