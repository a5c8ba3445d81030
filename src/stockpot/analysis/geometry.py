"""Moves from a base: distances, angles between them, and planes through three models.

Only bytes and NumPy: nothing here imports torch. Values are read once, a block at a time. A point
θ₀ + Σ cᵢ·(θᵢ − θ₀) is written as its coefficients c (k,), and inner products come from the Gram
matrix of the moves, so nothing of the size of a model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from stockpot._types import Progress, no_progress
from stockpot.analysis.initialisation import (
    SameInitialisation,
    assess,
    comparable,
    sums_by_tensor,
    tells_start,
)
from stockpot.errors import Problem
from stockpot.tensors import changes
from stockpot.tensors.trim import Stored

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


_F64 = npt.NDArray[np.float64]
_BLOCK = 1 << 18
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Move:
    """How far one ingredient is from the base.

    Attributes:
        distance: ‖θ − θ₀‖ / ‖θ₀‖ over all parameters compared; None where it is not defined.
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
        tensors: how many parameters were compared: those that all hold in one shape.
        ingredients: one for each, in the order given.
        angles: one for each pair.
    """

    base: str
    tensors: int
    ingredients: tuple[Move, ...]
    angles: tuple[Angle, ...]


OUTLIER = 3.0
"""A model this many times farther from the base than the median one stands out."""


def outliers(distances: Sequence[float]) -> list[int]:
    """Positions of distances that are more than `OUTLIER` times the median; of three and more.

    >>> outliers([1.0, 1.1, 0.9, 9.0]), outliers([1.0, 9.0])
    ([3], [])
    """
    middle = float(np.median(distances)) if len(distances) > 2 else 0.0
    return [i for i, d in enumerate(distances) if middle > 0 and d > OUTLIER * middle]


def outlier_text(paths: Sequence[str], distances: Sequence[float], start: str) -> str:
    """Who moved much farther than the others, and by how much; empty where nobody did.

    >>> outlier_text(["a", "b", "c", "d"], [1.0, 1.1, 0.9, 9.0], "the base")
    '1 of 4 moved 9 times as far from the base as the median or more: d'
    """
    apart = outliers(distances)
    if not apart:
        return ""
    times = min(distances[i] for i in apart) / float(np.median(distances))
    named = ", ".join(paths[i] for i in apart)
    return (
        f"{len(apart)} of {len(distances)} moved {times:.0f} times as far from {start} as the "
        f"median or more: {named}"
    )


def measure_moves(
    checkpoints: Sequence[Checkpoint], base: Checkpoint, *, progress: Progress = no_progress
) -> tuple[Moves, tuple[Problem, ...]]:
    """The moves of `checkpoints` from `base`, and the tensors whose values are not finite.

    Only parameters count; running statistics and other buffers are left out. A tensor with NaN or
    infinity anywhere takes no part. Tied tensors count once. Products are
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
        gram: ⟨θᵢ − θ₀, θⱼ − θ₀⟩ over all parameters compared, float64 (k, k).
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
                assess(self.correlations[i]),
            )
            for i, path in enumerate(self.paths)
        )
        return Moves(self.base, self.n_tensors, ingredients, _angles(self.paths, self.gram))


def measure_geometry(
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint,
    *,
    parameters: Collection[str] | None = None,
    progress: Progress = no_progress,
) -> Geometry:
    """Read every parameter once, a block at a time; see `measure_moves`.

    Args:
        checkpoints: moved from the base.
        base: their origin.
        parameters: names of the parameters, where the model is known; else by the names.
        progress: called with bytes.
    """
    from stockpot.mixing.coefficients import layer_of

    names = comparable(checkpoints, base, parameters)
    total = sum(base[name].nbytes for name in names) * (len(checkpoints) + 1)
    k = len(checkpoints)
    layers: dict[str, _F64] = {}
    squares: dict[str, float] = {}
    correlations: list[list[float]] = [[] for _ in checkpoints]
    problems: list[Problem] = []
    done = 0
    each = sums_by_tensor(names, [base, *checkpoints])
    for name, (sums, bad) in zip(names, each, strict=True):
        done += base[name].nbytes * (k + 1)
        progress(done, total, "bytes")
        if bad:
            problems += [Problem(c, name, "NaN or infinity", "finite values") for c in bad]
            continue
        layer = layer_of(name)
        layers[layer] = layers.get(layer, np.zeros((k, k))) + sums.gram
        squares[layer] = squares.get(layer, 0.0) + sums.base_square
        if tells_start(base[name]):
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


def tensor_grams(
    checkpoints: Sequence[Checkpoint], base: Checkpoint, *, progress: Progress = no_progress
) -> dict[str, _F64]:
    """Inner products ⟨θᵢ − θ₀, θⱼ − θ₀⟩ (k, k) of each parameter, float64; read once.

    Tensors that are not finite somewhere are left out.
    """
    names = comparable(checkpoints, base)
    found: dict[str, _F64] = {}
    for number, name in enumerate(names, 1):
        gram = inner_products(name, checkpoints, origin=base)
        if np.isfinite(gram).all():
            found[name] = gram
        progress(number, len(names), "tensors")
    return found


def inner_products(
    name: str, checkpoints: Sequence[Checkpoint], *, origin: Checkpoint | None = None
) -> _F64:
    """⟨θᵢ, θⱼ⟩ (k, k) of one tensor about `origin`, or about 0: float64, read a block at a time."""
    k, n = len(checkpoints), checkpoints[0][name].numel
    every = [*checkpoints, *([] if origin is None else [origin])]
    readers = [(one.reader(name), one[name].dtype) for one in every]

    def part(start: int) -> _F64:
        stop = min(start + _BLOCK, n)
        blocks = [
            Stored(read(start * size, stop * size).view(dtype.storage), dtype.value)
            for read, dtype in readers
            for size in [dtype.storage.itemsize]
        ]
        return changes.gram(blocks[:k], None if origin is None else blocks[-1])

    total = np.zeros((k, k))
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(part, range(0, n, _BLOCK)):
            total += found
    return total


def _ratio(move: float, norm: float) -> float | None:
    return math.sqrt(move / norm) if norm > 0 else None


def _angles(paths: Sequence[str], gram: _F64) -> tuple[Angle, ...]:
    units = np.eye(len(paths))
    return tuple(
        Angle(paths[i], paths[j], angle(gram, units[i], units[j]))
        for i, j in combinations(range(len(paths)), 2)
    )


class Projection(NamedTuple):
    """The orthogonal projection of a point onto a plane, and its distance from the plane."""

    x: float
    y: float
    distance: float


def angle(gram: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Degrees between two moves given by coefficients; None when one of them is no move.

    >>> angle([[1, 0], [0, 4]], [1, 0], [1, 0.5])
    45.0
    """
    g, u, v = (np.asarray(x, np.float64) for x in (gram, a, b))
    norm = math.sqrt(max(0.0, float(u @ g @ u)) * max(0.0, float(v @ g @ v)))
    if norm == 0:
        return None
    return round(math.degrees(math.acos(max(-1.0, min(1.0, float(u @ g @ v) / norm)))), 10)


@dataclass(frozen=True)
class Plane:
    """A plane through the base with an orthonormal basis, in units of distance between weights.

    Attributes:
        gram: inner products of the moves, (k, k).
        first: coefficients of the first unit vector, along the first point.
        second: of the second, at right angles to it, towards the second point.
    """

    gram: _F64
    first: _F64
    second: _F64

    def project(self, point: npt.ArrayLike) -> Projection:
        """Coordinates of the nearest point of the plane to θ₀ + Σ cᵢ·Δᵢ, and the distance to it."""
        c = np.asarray(point, np.float64)
        noise = 1e-12 * math.sqrt(max(0.0, float(c @ self.gram @ c)))
        x, y = (float(axis @ self.gram @ c) for axis in (self.first, self.second))
        x, y = (0.0 if abs(at) < noise else at for at in (x, y))  # on an axis: not 4e-16 beside it
        rest = c - x * self.first - y * self.second
        return Projection(x, y, math.sqrt(max(0.0, float(rest @ self.gram @ rest))))

    def at(self, x: float, y: float) -> _F64:
        """Coefficients of the point (x, y) of the plane."""
        found: _F64 = x * self.first + y * self.second
        return found


def plane_through(gram: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Plane:
    """The plane through the base and two points, its basis by Gram–Schmidt on (a, b).

    u = a/‖a‖, v = (b − ⟨b, u⟩u)/‖b − ⟨b, u⟩u‖. The first point lies on the positive x axis, the
    second above it.

    >>> plane = plane_through([[4, 2], [2, 5]], [1, 0], [0, 1])
    >>> plane.project([1, 0]), plane.project([0, 1])
    (Projection(x=2.0, y=0.0, distance=0.0), Projection(x=1.0, y=2.0, distance=0.0))

    Args:
        gram: inner products of the moves, (k, k).
        a: coefficients (k,) of the first point.
        b: coefficients (k,) of the second point.

    Raises:
        ValueError: the three points lie on one line.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, figure 2.
    """
    g, u, v = (np.asarray(x, np.float64) for x in (gram, a, b))
    first_norm, second_norm = (math.sqrt(max(0.0, float(p @ g @ p))) for p in (u, v))
    if first_norm == 0 or second_norm == 0:
        raise ValueError("one of the two points is the base itself; a plane needs three points")
    u = u / first_norm
    v = v - float(v @ g @ u) * u
    height = math.sqrt(max(0.0, float(v @ g @ v)))
    if height < 1e-6 * second_norm:
        raise ValueError("the two points lie on one line through the base; they span no plane")
    return Plane(g, u, v / height)
