"""Adapters of one base, mixed: their weights, and one adapter that gives them.

Σ cᵢ·(W₀ + sᵢ·Bᵢ·Aᵢ) with Σ cᵢ = 1 is W₀ + B·A for B = (c₁s₁B₁ | c₂s₂B₂ | …) and A the Aᵢ one below
the other: an adapter of rank Σ rᵢ and scale 1, exact. One of rank R follows from QR of both and a
singular value decomposition of the small core (Eckart and Young 1936), without the full matrix; its
error is √Σ_{j>R} σⱼ².
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stockpot._types import JSON
from stockpot.errors import NonFiniteError, RecipeError
from stockpot.formats.adapters.beside import Beside, Scaled
from stockpot.formats.adapters.checkpoint import Adapter, OnBase
from stockpot.formats.adapters.update import (
    F64,
    Part,
    Rows,
    Update,
    WeightSum,
    matrix_shape,
    oriented,
    stored_values,
)
from stockpot.formats.base import Checkpoint
from stockpot.tensors.blas import one_thread
from stockpot.tensors.rounding import Array, finite, narrow, widen
from stockpot.tensors.spec import DType, TensorSpec

_TOLERANCE = 1e-6
"""How far from 1 coefficients may sum that are meant to sum to 1."""

_KEPT_FACTORS = 4
"""Tensors whose factors are held, so that each of two threads finds both that it needs."""


@dataclass(frozen=True, kw_only=True)
class FactorForm:
    """How the factors of a mixed adapter are stored.

    Attributes:
        dtype: of the factors; None: float32, or float64 where an adapter has that.
        rank: most of each update; None: as many as it takes to be exact.
    """

    dtype: DType | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class MixedFactors:
    """The factors of one tensor of a mixed adapter.

    Attributes:
        up: B (outputs, r), in the type that is stored.
        down: A (r, inputs).
        scale: s; 1 unless they are those of one adapter, as stored.
        norm: ‖s·B·A‖ before anything was cut off; None where nothing was.
        error: Frobenius norm of what was cut off.
    """

    up: Array
    down: Array
    dtype: DType
    scale: float = 1.0
    norm: float | None = None
    error: float = 0.0


@dataclass(frozen=True)
class Term:
    """One summand: an adapter, or the base where it is None, with its coefficient by tensor."""

    adapter: Adapter | None
    coefficient: Callable[[str], float]


class AdapterSum(OnBase):
    """Σ cᵢ·θᵢ over adapters of one base and the base itself, computed from their factors.

    With a `form` the weights are those that the base has under the *stored* factors, rounded as
    they will be: what is scored is what is saved, bit for bit. It has state: the factors of the
    last tensor, and a lock, since two threads ask for the two halves of it.

    Args:
        base: what the adapters were trained on.
        terms: the summands, in the order in which they are summed.
        specs: what comes out.
        form: how its factors are stored; None: it is merged into the base, and rounded once.

    Attributes:
        cut: tensor → norm of its update and of what a rank cut off, of factors that were made.
    """

    format = "adapters"

    def __init__(
        self,
        base: Checkpoint,
        terms: Sequence[Term],
        specs: Mapping[str, TensorSpec],
        form: FactorForm | None,
    ) -> None:
        self.base, self.terms, self.form = base, tuple(terms), form
        self.adapters = tuple(t.adapter for t in terms if t.adapter is not None)
        self.changed = frozenset(n for one in self.adapters for n in one.changed if n in specs)
        paths = ", ".join(one.path for one in self.adapters)
        super().__init__(f"<adapters {paths}>", specs, files=())
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._made: dict[str, MixedFactors] = {}
        self.cut: dict[str, tuple[float, float]] = {}

    def with_specs(self, specs: Mapping[str, TensorSpec]) -> AdapterSum:
        """The same sum, where other types come out."""
        return AdapterSum(self.base, self.terms, specs, self.form)

    @cached_property
    def plain(self) -> Adapter | None:
        """The one adapter that this is, as stored; None for a mixture, and for other factors."""
        if len(self.terms) != 1 or len(self.adapters) != 1:
            return None
        (only,) = self.adapters
        if any(self.terms[0].coefficient(name) != 1 for name in self.changed):
            return None
        rank, dtype = (None, None) if self.form is None else (self.form.rank, self.form.dtype)
        used = [one.factors for one in only.updates.values()]
        if rank is not None and (only.is_dora or any(one.rank > rank for one in used)):
            return None
        stored = {only.source[n].dtype for one in used for n in (one.up, one.down)}
        return only if dtype is None or stored <= {dtype} else None

    def cut_off(self) -> dict[str, JSON] | None:
        """What a rank cut off, of factors that were made; None where it cut off nothing.

        Norms are Frobenius norms, of s·B·A before and of what it lacks, by module and of all.
        """
        if self.form is None or not self.cut:
            return None
        found = {self.update_of(n).factors.module: self.cut[n] for n in sorted(self.cut)}
        norm, error = (math.hypot(*one) for one in zip(*found.values(), strict=True))
        modules: dict[str, JSON] = {m: {"norm": a, "error": b} for m, (a, b) in found.items()}
        return {"rank": self.form.rank, "norm": norm, "error": error, "modules": modules}

    def parts(self, name: str) -> list[tuple[Term, float]]:
        """The terms of a tensor whose coefficient is not 0."""
        found = [(term, term.coefficient(name)) for term in self.terms]
        return [(term, c) for term, c in found if c != 0]

    def _make_sum(self, name: str) -> WeightSum:
        if self.form is not None and self.plain is not None:
            return self.plain._make_sum(name)
        base = Rows(self.base, name) if name in self.base else _nothing(name, self)
        parts = [
            Part(c) if t.adapter is None else t.adapter.part_of(name, c, with_factors=False)
            for t, c in self.parts(name)
        ]
        linear = [part.coefficient for part in parts if part.is_linear]
        if self.form is not None and name in self.updated:
            mixed = self.factors(name)
            up, down = (widen(one, mixed.dtype.value) for one in (mixed.up, mixed.down))
            product = oriented(up * mixed.scale, down, self.is_flipped(name))
            return WeightSum(self[name], base, 1.0, product)
        others = [
            t.adapter.part_of(name, c)
            for (t, c), part in zip(self.parts(name), parts, strict=True)
            if t.adapter is not None and not part.is_linear
        ]
        share = math.fsum(linear)
        share = 1.0 if not others and abs(share - 1.0) <= _TOLERANCE else share
        pair = None
        if linear and name in self._low_rank:
            mixed_up, mixed_down = self._concatenated(name)
            if mixed_up.shape[1]:
                pair = oriented(mixed_up, mixed_down, self.is_flipped(name))
        return WeightSum(self[name], base, share, pair, others)

    @property
    def _low_rank(self) -> frozenset[str]:
        return frozenset(name for one in self.adapters for name in one.updates)

    @property
    def updated(self) -> tuple[str, ...]:
        """Tensors that some adapter with a coefficient updates by factors, in order."""
        names = self._low_rank
        return tuple(name for name in self if name in names and self.updates_of(name))

    def updates_of(self, name: str) -> list[Update]:
        """The updates of a tensor by the adapters that have a coefficient there."""
        adapters = [term.adapter for term, _ in self.parts(name) if term.adapter is not None]
        return [one.updates[name] for one in adapters if name in one.updates]

    def update_of(self, name: str) -> Update:
        """The first adapter's update of a tensor: it has the spelling of its names."""
        return next(one.updates[name] for one in self.adapters if name in one.updates)

    def is_flipped(self, name: str) -> bool:
        """Whether the tensor is stored as (in, out)."""
        return self.update_of(name).is_flipped

    def _concatenated(self, name: str) -> tuple[F64, F64]:
        """(c₁s₁B₁ | …) and the Aᵢ one below the other, of what is linear."""
        ups, downs = [], []
        for term, c in self.parts(name):
            update = None if term.adapter is None else term.adapter.updates.get(name)
            if update is None or update.factors.magnitude is not None:
                continue
            if term.adapter is not None and name in (*term.adapter.whole, *term.adapter.rows):
                continue
            ups.append(update.up * (c * update.factors.scale))
            downs.append(update.down)
        if not ups:
            rows, columns = matrix_shape(self[name])
            return np.empty((rows, 0)), np.empty((0, columns))
        return np.concatenate(ups, axis=1), np.concatenate(downs, axis=0)

    def factors(self, name: str) -> MixedFactors:
        """The factors of an updated tensor as they are stored.

        Raises:
            RecipeError: the mixture is no adapter of its base: coefficients that do not sum to 1,
                or magnitudes (DoRA) and no rank.
            NonFiniteError: a factor holds NaN or infinity, or does not fit its type.
        """
        with self._lock:
            making = self._making.setdefault(name, threading.Lock())
        with making:  # two threads want the two factors of a tensor at about the same time
            found = self._made.get(name)
            if found is None:
                with one_thread():
                    found = self._mixed(name)
                if found.norm is not None:
                    self.cut[name] = (found.norm, found.error)
                with self._lock:
                    while len(self._made) >= _KEPT_FACTORS:
                        del self._made[next(iter(self._made))]
                    self._made[name] = found
            return found

    def _mixed(self, name: str) -> MixedFactors:
        assert self.form is not None
        rank = self.form.rank
        self.require_adapter(name)
        if any(one.factors.magnitude is not None for one in self.updates_of(name)):
            return self._rounded(name, *truncated_dense(self._difference(name), rank or 0))
        kept = self._keeps_stored(name)
        if kept is not None:
            source, own = kept.source, kept.factors
            up, down = (_stored(source, n, is_up=n == own.up) for n in (own.up, own.down))
            return MixedFactors(up, down, source[own.up].dtype, own.scale)
        beside = self.beside(name)
        if beside is not None:
            return MixedFactors(*beside.matrices(), beside.dtype)
        return self._rounded(name, *truncated(*self._concatenated(name), rank or 0))

    def beside(self, name: str) -> Beside | None:
        """The exact factors of a tensor, made in parts; None where they are made as a whole."""
        assert self.form is not None
        updates, rank = self.updates_of(name), self.form.rank
        if any(one.factors.magnitude is not None for one in updates):
            return None
        if self._keeps_stored(name) is not None:
            return None
        if rank is not None and sum(one.factors.rank for one in updates) > rank:
            return None
        found = [(t.adapter.updates[name], c) for t, c in self.parts(name)
                 if t.adapter is not None and name in t.adapter.updates]  # fmt: skip
        scaled = [Scaled(one.source, one.factors, c * one.factors.scale) for one, c in found]
        return Beside(scaled, self.dtype_of_factors)

    def _only(self, name: str) -> Update | None:
        """The update of a mixture that is one adapter, with coefficient 1."""
        parts = self.parts(name)
        if len(parts) != 1 or parts[0][1] != 1 or parts[0][0].adapter is None:
            return None
        return parts[0][0].adapter.updates.get(name)

    def _rounded(
        self, name: str, up: F64, down: F64, norm: float | None, error: float
    ) -> MixedFactors:
        dtype = self.dtype_of_factors
        stored = [narrow(one, dtype.value) for one in (up, down)]
        if not all(finite(one, dtype.value) for one in stored):
            raise NonFiniteError(
                f"the factors of {name} do not fit {dtype.value}: choose a wider dtype, such as "
                "f32",
                path=self.path,
                tensor=name,
            )
        return MixedFactors(stored[0], stored[1], dtype, 1.0, norm, error)

    def _keeps_stored(self, name: str) -> Update | None:
        """The update whose factors are taken as they are stored; None where they are computed."""
        assert self.form is not None
        only, rank = self._only(name), self.form.rank
        if only is None or only.factors.magnitude is not None:
            return None
        if rank is not None and only.factors.rank > rank:
            return None
        types = {only.source[n].dtype for n in (only.factors.up, only.factors.down)}
        same = len(types) == 1 and (self.form.dtype is None or types == {self.form.dtype})
        return only if same else None

    def stored_dtype(self, name: str) -> DType:
        """The type in which the factors of a tensor are stored."""
        kept = self._keeps_stored(name)
        return self.dtype_of_factors if kept is None else kept.source[kept.factors.up].dtype

    def stored_scale(self, name: str) -> float:
        """The scale that goes with the stored factors of a tensor."""
        kept = self._keeps_stored(name)
        return 1.0 if kept is None else kept.factors.scale

    @cached_property
    def dtype_of_factors(self) -> DType:
        """The type in which factors are stored that had to be computed."""
        assert self.form is not None
        if self.form.dtype is not None:
            return self.form.dtype
        types = {
            one.source[name].dtype
            for one in self.adapters
            for update in one.updates.values()
            for name in (update.factors.up, update.factors.down)
        }
        return DType.F64 if DType.F64 in types else DType.F32

    def require_adapter(self, name: str) -> None:
        """Refuse what no adapter of the base can hold.

        Raises:
            RecipeError: see `factors`.
        """
        assert self.form is not None
        parts = self.parts(name)
        total = math.fsum(c for _, c in parts)
        remedy = "write the full model instead: merge=True (--merge)"
        if abs(total - 1.0) > _TOLERANCE:
            raise RecipeError(
                f"the coefficients of {name} sum to {total:g}, and an adapter of the base has all "
                f"of the base; {remedy}"
            )
        for term, _ in parts:
            adapter = term.adapter
            if adapter is None or name not in adapter.updates:
                continue
            if name in adapter.whole or name in adapter.rows:
                raise RecipeError(
                    f"{adapter.path} replaces {name} and updates it as well, which no adapter of "
                    f"the base holds; {remedy}"
                )
            if adapter.updates[name].factors.magnitude is None or self.form.rank is not None:
                continue
            if len(parts) > 1 or parts[0][1] != 1:
                raise RecipeError(
                    f"{adapter.path} is a DoRA adapter, whose magnitudes are not linear: a mixture "
                    f"with it is no exact adapter; {remedy}, or the best adapter of a rank with "
                    "its error: rank=R (--rank R)"
                )

    def _difference(self, name: str) -> F64:
        """W − W₀ as a matrix (outputs, inputs), in float64."""
        parts = [
            Part(c) if t.adapter is None else t.adapter.part_of(name, c)
            for t, c in self.parts(name)
        ]
        read, (rows, _) = Rows(self.base, name), matrix_shape(self[name])
        whole = WeightSum(self[name], read, 0.0, None, parts).block(0, rows) - read(0, rows)
        return whole.T if self.is_flipped(name) else whole


def _nothing(name: str, checkpoint: Checkpoint) -> Callable[[int, int], F64]:
    """Stands for the base where it lacks a tensor that all adapters bring."""
    _, columns = matrix_shape(checkpoint[name])
    return lambda first, last: np.zeros((last - first, columns))


def _stored(source: Checkpoint, name: str, *, is_up: bool) -> Array:
    shape = source[name].shape
    return stored_values(source, name).reshape(shape[:2] if is_up else (shape[0], -1))


def truncated(up: F64, down: F64, rank: int) -> tuple[F64, F64, float, float]:
    """The best factors of `rank` of up·down, its norm, and the Frobenius norm of the rest.

    Args:
        up: (m, r).
        down: (r, n).
        rank: of the result, at least 1.

    >>> up, down, norm, error = truncated(np.diag([3.0, 4.0]), np.eye(2), 1)
    >>> np.round(np.abs(up @ down), 12).tolist(), norm, error
    ([[0.0, 0.0], [0.0, 4.0]], 5.0, 3.0)
    """
    q_up, r_up = np.linalg.qr(up)
    q_down, r_down = np.linalg.qr(down.T)
    left, sigma, right = np.linalg.svd(r_up @ r_down.T)
    return _cut(q_up @ left[:, : len(sigma)], sigma, (right[: len(sigma)] @ q_down.T), rank)


def truncated_dense(matrix: F64, rank: int) -> tuple[F64, F64, float, float]:
    """As `truncated`, of a matrix that has no factors.

    By the eigenvectors of the smaller of its two Gram matrices, which takes a tenth of the time of
    a singular value decomposition; an error below 1e-8 of the norm is not told from 0.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    gram = matrix.T @ matrix if tall else matrix @ matrix.T
    values, vectors = np.linalg.eigh(gram)
    kept = vectors[:, ::-1][:, :rank]
    rest = float(np.sqrt(max(0.0, float(values[: max(0, len(values) - rank)].sum()))))
    up, down = (matrix @ kept, kept.T) if tall else (kept, kept.T @ matrix)
    left, right, _, _ = truncated(up, down, rank)
    return left, right, float(np.linalg.norm(matrix)), rest


def _cut(left: F64, sigma: F64, right: F64, rank: int) -> tuple[F64, F64, float, float]:
    kept = min(rank, len(sigma))
    root = np.sqrt(sigma[:kept])
    norm, error = (float(np.sqrt(np.sum(one**2))) for one in (sigma, sigma[kept:]))
    return left[:, :kept] * root, root[:, None] * right[:kept], norm, error
