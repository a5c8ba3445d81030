"""Rules that take matrices apart by their singular values: Iso-C, TSV-M and MonoSoup.

Tensors of two and more axes are matrices [first axis, all others]; of others, the mean of the task
vectors is taken. Singular values come from LAPACK in float64, so that another build of it may round
a few values in a million to the other neighbour.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final

import numpy as np

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import Raw, TensorPlan
from stockpot.mixing.rules.task_vectors import F64, TaskVectorRule
from stockpot.tensors.changes import add_change, change
from stockpot.tensors.rounding import widen

_KEPT_BYTES = 512 << 20
"""What a search of λ keeps of merged tensors; the others are taken apart again for each λ."""


@dataclass(frozen=True, kw_only=True)
class MatrixRule(TaskVectorRule):
    """A rule of whole matrices. It is abstract: a subclass says what it makes of matrices.

    Attributes:
        kept: merged tensors by name, before λ, where several λ are asked for.
    """

    is_whole = True

    kept: dict[str, F64] | None = field(default=None, repr=False, compare=False)

    def for_scales(self) -> Self:
        """See `TaskVectorRule.for_scales`: singular values cost far more than a sum."""
        return self if self.kept is not None else replace(self, kept={})

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        del start
        *values, base = tensor.stored(blocks)
        name = tensor.source.name
        merged = None if self.kept is None else self.kept.get(name)
        if merged is None:
            merged = self.merged(tensor, [change(value, base) for value in values])
            if self.kept is not None:
                held = sum(one.nbytes for one in list(self.kept.values()))
                if held + merged.nbytes <= _KEPT_BYTES:
                    self.kept[name] = merged
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = merged * self.scale
        add_change(base, scaled, tensor.stored_output(out))

    def merged(self, tensor: TensorPlan, changes: Sequence[F64]) -> F64:
        """What is made of the task vectors, before λ: (n,)."""
        shape = tensor.source.shape
        weighted = [w * c for w, c in zip(tensor.coefficients, changes, strict=True)]
        if len(shape) < 2 or not any(change.any() for change in weighted):
            mean: F64 = np.sum(weighted, axis=0) / len(weighted)
            return mean
        return self.merged_matrix([one.reshape(shape[0], -1) for one in weighted]).ravel()

    @abstractmethod
    def merged_matrix(self, changes: Sequence[F64]) -> F64:
        """The merged matrix (m, n) of matrices (m, n), before λ."""


@final
@dataclass(frozen=True, kw_only=True)
class IsoC(MatrixRule):
    """θ₀ + λ·mean(σ)·UVᵀ, where Σ τᵢ = U·diag(σ)·Vᵀ: all directions of the sum alike.

    Reference: Marczak et al. 2025, arXiv 2502.04959, §4.
    """

    name = "iso-c"
    needs_full_rank = True

    def merged_matrix(self, changes: Sequence[F64]) -> F64:
        """See `MatrixRule.merged_matrix`."""
        left, values, right = np.linalg.svd(np.sum(changes, axis=0), full_matrices=False)
        merged: F64 = float(values.mean()) * (left @ right)
        return merged


@final
@dataclass(frozen=True, kw_only=True)
class TsvM(MatrixRule):
    """θ₀ + λ·U⊥·diag(σ)·V⊥ᵀ from the leading singular vectors of all task vectors.

    Of each of N task vectors the leading ⌊r/N⌋ (at least one) of r singular triplets are kept and
    put side by side; U⊥ and V⊥ are the nearest matrices with orthonormal columns (Procrustes), so
    that tasks do not disturb each other.

    Reference: Gargiulo et al. 2025, arXiv 2412.00081, §4.
    """

    name = "tsv-m"
    needs_full_rank = True

    def merged_matrix(self, changes: Sequence[F64]) -> F64:
        """See `MatrixRule.merged_matrix`."""
        rank = max(1, min(changes[0].shape) // len(changes))
        parts = [np.linalg.svd(change, full_matrices=False) for change in changes]
        left = np.concatenate([u[:, :rank] for u, _, _ in parts], axis=1)
        values = np.concatenate([s[:rank] for _, s, _ in parts])
        right = np.concatenate([vt[:rank] for _, _, vt in parts])
        merged: F64 = (_orthonormal(left) * values) @ _orthonormal(right)
        return merged


@final
@dataclass(frozen=True, kw_only=True)
class MonoSoup(MatrixRule):
    """θ₀ + λ·((1 − s)·Δ_{≤k} + s·Δ_{>k}) of one fine-tune, Δ = UΣVᵀ cut after k singular values.

    s = ρ + (1 − ρ)·√(1 − P) with P the share of the energy Σσ² up to k, and ρ = (σ_{k+1}/σ₁)². So
    the directions in which fine-tuning moved most go nearly all the way, and the others, which
    hold what makes it forget, part of it. No data is needed. A Δ of full or flat spectrum, or of
    rank 1, stays as it is; so do vectors, and matrices that moved by less than 10⁻⁶ of their norm.

    Attributes:
        cut: k is ⌈exp H⌉, H the entropy of σ/Σσ (`"entropy"`), or the least with 80 % of the
            energy (`"energy"`).

    Reference: MonoSoup 2026, arXiv 2602.09689.
    """

    name = "mono-soup"

    cut: Literal["entropy", "energy"] = option("entropy", help="How leading directions are found.")

    def merged(self, tensor: TensorPlan, changes: Sequence[F64]) -> F64:
        """See `MatrixRule.merged`.

        Raises:
            RecipeError: several models.
        """
        if len(changes) != 1:
            raise RecipeError(f"{self.name} takes one fine-tuned model, found {len(changes)}")
        name = tensor.source.name
        base = tensor.inputs[-1].raw(name).view(tensor.dtypes[-1].storage)
        norm = float(np.linalg.norm(widen(base, tensor.dtypes[-1].value)))
        if float(np.linalg.norm(changes[0])) < 1e-6 * norm:
            return tensor.coefficients[0] * changes[0]
        return super().merged(tensor, changes)

    def merged_matrix(self, changes: Sequence[F64]) -> F64:
        """See `MatrixRule.merged_matrix`."""
        left, values, right = np.linalg.svd(changes[0], full_matrices=False)
        energy = values**2 / (values**2).sum()
        if self.cut == "entropy":
            share = values[values > 0] / values.sum()
            # Less than rounding error above a whole number is that number.
            k = math.ceil(math.exp(-float((share * np.log(share)).sum())) - 1e-9)
        else:
            k = int(np.searchsorted(np.cumsum(energy), 0.8 - 1e-12)) + 1
        if k >= len(values):
            return changes[0]
        rho = float((values[k] / values[0]) ** 2)
        low = rho + (1 - rho) * math.sqrt(max(0.0, float(energy[k:].sum())))
        shares = np.where(np.arange(len(values)) < k, 1 - low, low)
        merged: F64 = (left * (shares * values)) @ right
        return merged


def _orthonormal(matrix: F64) -> F64:
    """UVᵀ of its singular value decomposition."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    nearest: F64 = left @ right
    return nearest
