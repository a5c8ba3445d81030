"""How far fine-tuning moved each ingredient from its base, in which direction, and from where.

Only bytes and NumPy: nothing here imports torch. Values are read once, a block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._types import Progress, no_progress
from stockpot.errors import Problem
from stockpot.tensors.rounding import widen
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


_BLOCK_BYTES = 32 << 20
_QUICK_ELEMENTS, _QUICK_TENSORS = 4096, 16
"""Chance correlations of so many values stay below 0.05; those of one start are far above."""
_F64 = npt.NDArray[np.float64]

SHARED_ABOVE = 0.5
DIFFERENT_BELOW = 0.1
"""Medians measured on real models: 0.92 to 0.99 between a base and its fine-tuned versions or
within a run, at most 0.08 across seeds, 0.11 to 0.13 from the random start of a run to its end."""


@dataclass(frozen=True, slots=True)
class SameInitialisation:
    """Whether two checkpoints seem to come from one initialisation: evidence, never proof.

    Attributes:
        correlation: median over tensors of two or more dimensions of the centred correlation of
            their values, -1..1; None where no tensor says anything.
        n_tensors: how many tensors were compared.
        verdict: `"shared"`, `"different"` or `"unclear"`.
        text: the verdict in a sentence.
    """

    correlation: float | None
    n_tensors: int
    verdict: str
    text: str


@dataclass(frozen=True, slots=True)
class Move:
    """How far one ingredient is from the base.

    Attributes:
        distance: ‖θ − θ₀‖ / ‖θ₀‖ over all tensors compared; None where it is not defined.
        layers: the same for each layer.
        same_initialisation: whether it comes from the base at all.
    """

    path: str
    distance: float | None
    layers: dict[str, float | None]
    same_initialisation: SameInitialisation


@dataclass(frozen=True, slots=True)
class Angle:
    """The angle between two moves, θ₁ − θ₀ and θ₂ − θ₀; None when one of them did not move."""

    a: str
    b: str
    degrees: float | None


@dataclass(frozen=True, slots=True)
class Moves:
    """The moves of several ingredients from one base.

    Attributes:
        tensors: how many tensors were compared: floating-point ones that all hold alike.
        ingredients: one for each, in the order given.
        angles: one for each pair.
    """

    base: str
    tensors: int
    ingredients: tuple[Move, ...]
    angles: tuple[Angle, ...]


def measure_moves(
    checkpoints: Sequence[Checkpoint], base: Checkpoint, *, progress: Progress = no_progress
) -> tuple[Moves, tuple[Problem, ...]]:
    """The moves of `checkpoints` from `base`, and the tensors whose values are not finite.

    A tensor with NaN or infinity anywhere takes no part. Tied tensors count once. Products are
    summed in float64. Angles are about the *base*, not about the origin: seen from the origin all
    fine-tuned models look alike.

    cos φ = ⟨θ₁ − θ₀, θ₂ − θ₀⟩ / (‖θ₁ − θ₀‖ ‖θ₂ − θ₀‖).
    Reference: Wortsman et al. 2022, arXiv 2203.05482, figure 3.
    """
    geometry = measure_geometry(checkpoints, base, progress=progress)
    return geometry.moves(), geometry.problems


@dataclass(frozen=True)
class Geometry:
    """Inner products of the moves of k checkpoints from one base: all that planes and angles need.

    Attributes:
        gram: ⟨θᵢ − θ₀, θⱼ − θ₀⟩ over all tensors compared, float64 (k, k).
        layers: the same for each layer.
        squares: ‖θ₀‖² of each layer.
        correlations: of each checkpoint, the centred correlation of its tensors with the base's.
        problems: tensors that took no part, because their values are not finite.
    """

    base: str
    paths: tuple[str, ...]
    n_tensors: int
    gram: _F64
    layers: dict[str, _F64]
    squares: dict[str, float]
    correlations: tuple[tuple[float, ...], ...]
    problems: tuple[Problem, ...] = ()

    def moves(self) -> Moves:
        """Distances, angles and evidence of a common start, for people."""
        whole = sum(self.squares.values())
        ingredients = tuple(
            Move(
                path,
                _ratio(self.gram[i, i], whole) if self.squares else None,
                {n: _ratio(gram[i, i], self.squares[n]) for n, gram in self.layers.items()},
                judge(self.correlations[i]),
            )
            for i, path in enumerate(self.paths)
        )
        return Moves(self.base, self.n_tensors, ingredients, _angles(self.paths, self.gram))


def measure_geometry(
    checkpoints: Sequence[Checkpoint], base: Checkpoint, *, progress: Progress = no_progress
) -> Geometry:
    """Read every value once, a block at a time; see `measure_moves`."""
    from stockpot.mixing.groups import layer_of

    names = _comparable(checkpoints, base)
    total = sum(base[name].nbytes for name in names) * (len(checkpoints) + 1)
    k = len(checkpoints)
    layers: dict[str, _F64] = {}
    squares: dict[str, float] = {}
    correlations: list[list[float]] = [[] for _ in checkpoints]
    problems: list[Problem] = []
    done = 0
    for name in names:
        done += base[name].nbytes * (k + 1)
        sums, bad = _sums(base[name], [base, *checkpoints])
        progress(done, total, "bytes")
        if bad:
            problems += [Problem(c, name, "NaN or infinity", "finite values") for c in bad]
            continue
        layer = layer_of(name)
        layers[layer] = layers.get(layer, np.zeros((k, k))) + sums.gram
        squares[layer] = squares.get(layer, 0.0) + sums.base_square
        if len(base[name].shape) >= 2:
            for values, correlation in zip(correlations, sums.correlations(), strict=True):
                if correlation is not None:
                    values.append(correlation)
    return Geometry(
        base.path,
        tuple(c.path for c in checkpoints),
        len(names),
        sum(layers.values(), np.zeros((k, k))),
        layers,
        squares,
        tuple(map(tuple, correlations)),
        tuple(problems),
    )


def _comparable(checkpoints: Sequence[Checkpoint], base: Checkpoint) -> list[str]:
    repeated = {name for group in base.tied for name in group[1:]}
    return [
        name
        for name, spec in base.items()
        if spec.dtype.mixable and spec.numel and name not in repeated
        if all(checkpoint.get(name) == spec for checkpoint in checkpoints)
    ]


@dataclass(slots=True)
class _Sums:
    """Sums over one tensor, of values from which the base's first block mean was taken away."""

    n: int
    gram: _F64
    base_square: float
    first: _F64
    square: _F64
    cross: _F64

    def correlations(self) -> Iterator[float | None]:
        """Centred correlation of each checkpoint's values with the base's."""
        variance = self.square / self.n - (self.first / self.n) ** 2
        covariance = self.cross / self.n - self.first / self.n * (self.first[0] / self.n)
        # Below this a tensor is constant, and what is left is rounding.
        least = 1e-12 * (self.square / self.n)
        for i in range(1, len(self.first)):
            if variance[0] <= least[0] or variance[i] <= least[i]:
                yield None
            else:
                yield float(covariance[i] / math.sqrt(variance[0] * variance[i]))


def _sums(
    spec: TensorSpec, checkpoints: Sequence[Checkpoint], max_elements: int | None = None
) -> tuple[_Sums, list[str]]:
    """The sums over tensor `spec` (the base comes first), and the paths that are not finite."""
    k = len(checkpoints)
    n = spec.numel if max_elements is None else min(spec.numel, max_elements)
    raws = [checkpoint.raw(spec.name).view(spec.dtype.storage) for checkpoint in checkpoints]
    step = max(1024, _BLOCK_BYTES // (8 * k))
    sums = _Sums(n, np.zeros((k - 1, k - 1)), 0.0, np.zeros(k), np.zeros(k), np.zeros(k))
    shift: float | None = None
    values = np.empty((k, min(step, n)))
    for start in range(0, n, step):
        block = values[:, : min(step, n - start)]
        for row, raw in zip(block, raws, strict=True):
            row[:] = widen(raw[start : min(start + step, n)], spec.dtype.value)
        finite = [bool(np.isfinite(row).all()) for row in block]
        if not all(finite):
            return sums, [c.path for c, fine in zip(checkpoints, finite, strict=True) if not fine]
        sums.base_square += float(block[0] @ block[0])
        shift = float(block[0].mean()) if shift is None else shift
        block -= shift
        sums.first += block.sum(axis=1)
        sums.square += np.einsum("ij,ij->i", block, block)
        sums.cross += block @ block[0]
        moves = block[1:]
        moves -= block[0]
        sums.gram += moves @ moves.T
    return sums, []


def _ratio(move: float, norm: float) -> float | None:
    return math.sqrt(move / norm) if norm > 0 else None


def _angles(paths: Sequence[str], gram: _F64) -> tuple[Angle, ...]:
    angles = []
    for i, a in enumerate(paths):
        for j in range(i + 1, len(paths)):
            norm = math.sqrt(gram[i, i] * gram[j, j])
            cosine = gram[i, j] / norm if norm > 0 else None
            degrees = None if cosine is None else math.degrees(math.acos(max(-1, min(1, cosine))))
            angles.append(Angle(a, paths[j], degrees))
    return tuple(angles)


def judge(correlations: Sequence[float]) -> SameInitialisation:
    """What the centred correlations of the tensors of two or more dimensions say, by their median.

    Norms and biases are left out: they begin at 1 and 0 in every model. The cosine of whole models
    does not tell, for the same reason.

    >>> judge([0.97, 0.93, 0.99]).text
    'seems to share the initialisation of the base (evidence, never proof): correlation 0.97'
    >>> judge([0.03, -0.01, 0.05]).verdict
    'different'
    """
    if not correlations:
        text = "no tensor of two or more dimensions says whether it shares the initialisation"
        return SameInitialisation(None, 0, "unclear", text)
    middle = float(np.median(correlations))
    if middle >= SHARED_ABOVE:
        verdict, text = "shared", "seems to share the initialisation of the base"
    elif middle < DIFFERENT_BELOW:
        verdict, text = "different", "does not seem to share the initialisation of the base"
    else:
        verdict, text = "unclear", "has another initialisation than the base, or moved far from it"
    text += f" (evidence, never proof): correlation {middle:.2f}"
    return SameInitialisation(middle, len(correlations), verdict, text)


def same_initialisation(
    one: Checkpoint,
    other: Checkpoint,
    *,
    max_elements: int | None = None,
    max_tensors: int | None = None,
) -> SameInitialisation:
    """Whether `other` seems to come from the same initialisation as `one`.

    Args:
        max_elements: look at no more than these first elements of each tensor, for a quick check of
            large models; 65,536 leave a correlation by chance below 0.02.
        max_tensors: and at no more than about so many tensors, evenly chosen.
    """
    correlations = []
    names = [name for name in _comparable([other], one) if len(one[name].shape) >= 2]
    step = 1 if max_tensors is None else max(1, len(names) // max_tensors)
    for name in names[::step]:
        sums, bad = _sums(one[name], [one, other], max_elements)
        correlations += [c for c in sums.correlations() if c is not None and not bad]
    return judge(correlations)


def quick_evidence(one: Checkpoint, other: Checkpoint) -> SameInitialisation:
    """`same_initialisation` from the first values of some tensors: a few pages of each file."""
    return same_initialisation(one, other, max_elements=_QUICK_ELEMENTS, max_tensors=_QUICK_TENSORS)
