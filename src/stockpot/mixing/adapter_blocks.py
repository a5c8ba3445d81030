"""Mixing adapters of one base again and again, and the gradient in their coefficients.

For W = W₀ + Σ cᵢ·Lᵢ·Rᵢ the chain rule gives ∂L/∂cᵢ = ⟨G, Lᵢ·Rᵢ⟩ = Σ (G·Rᵢᵀ) ∘ Lᵢ: one product with
all factors side by side, and no model of any adapter is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.update import F64, Rows, matrix_shape
from stockpot.formats.base import Checkpoint
from stockpot.mixing.blocks import IngredientBlocks, InnerProducts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Tensor:
    """One tensor that adapters change.

    Attributes:
        left: L of all low-rank updates side by side, (rows, Σ r).
        right: their R, one below the other.
        owner: which ingredient each column of `left` is of, (Σ r,).
        dense: ingredients that change it in another way (DoRA, heads): they are made when needed.
    """

    left: torch.Tensor
    right: torch.Tensor
    owner: torch.Tensor
    dense: tuple[int, ...]


class AdapterBlocks(IngredientBlocks):
    """Passes over adapters of one base, whose factors are held on the device.

    Everything is relative to the base: moves of fine-tuning are small beside it, and in float32 the
    difference of two products would drown.

    Args:
        checkpoints: k adapters of one base.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` or `torch.float64`.
        device: where the model and its gradient are.
        max_memory: bytes that the factors may take; None for no limit.

    Raises:
        RecipeError: `max_memory` is less than the factors take.
    """

    def __init__(
        self,
        checkpoints: Sequence[Adapter],
        names: Sequence[str],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_memory: int | None = None,
    ) -> None:
        super().__init__(checkpoints, names, dtype=dtype)
        self._adapters, self._device = tuple(checkpoints), device
        self._base: Checkpoint = checkpoints[0].base
        self._n_fitting(max_memory)
        changed = {name for one in checkpoints for name in one.changed}
        self._tensors = {name: self._prepare(name) for name in names if name in changed}

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the factors."""
        size = self._dtype.itemsize
        return sum(
            one.source[name].numel * size
            for one in self._adapters
            for update in one.updates.values()
            for name in (update.factors.up, update.factors.down)
        )

    @property
    def n_held(self) -> int:
        """All of them: their factors."""
        return len(self._adapters)

    def _prepare(self, name: str) -> _Tensor:
        import torch

        rows, columns = matrix_shape(self._adapters[0][name])
        lefts, rights = [np.empty((rows, 0))], [np.empty((0, columns))]
        owner, dense = list[int](), list[int]()
        for i, adapter in enumerate(self._adapters):
            update = adapter.updates.get(name)
            replaced = name in adapter.whole or name in adapter.rows
            if replaced or (update is not None and update.factors.magnitude is not None):
                dense.append(i)
            elif update is not None:
                left, right = update.product()
                lefts.append(left)
                rights.append(right)
                owner += [i] * left.shape[1]
        return _Tensor(
            self._on_device(np.concatenate(lefts, axis=1)),
            self._on_device(np.concatenate(rights, axis=0)),
            torch.tensor(owner, dtype=torch.int64, device=self._device),
            tuple(dense),
        )

    def _on_device(self, values: F64) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, self._dtype)

    def _start(self, name: str) -> torch.Tensor:
        """W₀ as a matrix; zeros for a tensor that only the adapters have."""
        import torch

        rows, columns = matrix_shape(self._adapters[0][name])
        if name not in self._base:
            return torch.zeros(rows, columns, dtype=self._dtype, device=self._device)
        value = self._base.read(name).reshape(rows, columns)
        return value.to(self._device, self._dtype)

    def _move(self, name: str, i: int) -> torch.Tensor:
        """W − W₀ of an ingredient that changes `name` otherwise than by factors."""
        rows, _ = matrix_shape(self._adapters[i][name])
        value = self._adapters[i].matrix(name)
        if name in self._base:
            value = value - Rows(self._base, name)(0, rows)
        return self._on_device(value)

    def rebuild(
        self,
        coefficients: torch.Tensor,
        group_index: Mapping[str, int],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        """See `IngredientBlocks.rebuild`: W₀·Σ cᵢ + (L∘c)·R."""
        import torch

        for name, target in targets.items():
            row = coefficients[group_index[name]].to(self._device)
            made = self._start(name) * float(row.sum())
            found = self._tensors.get(name)
            if found is not None:
                made.addmm_(found.left * row[found.owner].to(self._dtype), found.right)
                for i in found.dense:
                    made += float(row[i]) * self._move(name, i)
            with torch.no_grad():
                target.copy_(made.reshape(target.shape))

    def inner_products(
        self, gradients: Mapping[str, torch.Tensor], group_index: Mapping[str, int], n_groups: int
    ) -> InnerProducts:
        """See `IngredientBlocks.inner_products`."""
        import torch

        k = len(self._adapters)
        sums = torch.zeros(n_groups, k, dtype=torch.float64)
        start = torch.zeros(n_groups, dtype=torch.float64)
        for name, given in gradients.items():
            rows, columns = matrix_shape(self._adapters[0][name])
            gradient = given.to(self._device, self._dtype).reshape(rows, columns)
            start[group_index[name]] += _wide_dot(gradient, self._start(name))
            found = self._tensors.get(name)
            if found is None:
                continue
            products = ((gradient @ found.right.T) * found.left).sum(dim=0, dtype=torch.float64)
            one = torch.zeros(k, dtype=torch.float64, device=self._device)
            one.index_add_(0, found.owner, products)
            sums[group_index[name]] += one.cpu()
            for i in found.dense:
                sums[group_index[name], i] += _wide_dot(gradient, self._move(name, i))
        shift = sums.mean(dim=1)
        return InnerProducts(sums - shift[:, None], start + shift)

    def spreads(self, group_index: Mapping[str, int], n_groups: int) -> torch.Tensor:
        """See `IngredientBlocks.spreads`, from the inner products of the moves."""
        import torch

        k = len(self._adapters)
        total = torch.zeros(n_groups, k, dtype=torch.float64)
        for name, row in group_index.items():
            if name in self._tensors:
                gram = self._gram(name)
                mean = gram.mean(dim=1)
                total[row] += (gram.diagonal() - 2 * mean + mean.mean()).clamp_min(0)
        return total.sqrt()

    def _gram(self, name: str) -> torch.Tensor:
        """⟨Wᵢ − W₀, Wⱼ − W₀⟩ of one tensor: float64, (k, k)."""
        import torch

        found, k = self._tensors[name], len(self._adapters)
        if found.dense:
            moves = torch.stack([self._whole_move(name, i).flatten() for i in range(k)]).double()
            return (moves @ moves.T).cpu()
        left, right = found.left.double(), found.right.double()
        both = (left.T @ left) * (right @ right.T)
        rows = torch.zeros(k, len(both), dtype=torch.float64, device=self._device)
        rows.index_add_(0, found.owner, both)
        gram = torch.zeros(k, k, dtype=torch.float64, device=self._device)
        return gram.index_add_(1, found.owner, rows).cpu()

    def _whole_move(self, name: str, i: int) -> torch.Tensor:
        found = self._tensors[name]
        if i in found.dense:
            return self._move(name, i)
        own = found.owner == i
        return found.left[:, own] @ found.right[own]


def _wide_dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩ of matrices: products of a row in their own precision, their sum in float64."""
    return float((a * b).sum(dim=1).double().sum())
