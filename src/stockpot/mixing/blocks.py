"""Mixing k ingredients again and again, and the gradient of a loss in their coefficients.

For θ_l = Σ_i c_{i,l} θ_{i,l} the chain rule gives ∂L/∂c_{i,l} = ⟨∂L/∂θ_l, θ_{i,l}⟩: an ordinary
backward pass at θ and one pass of inner products over the ingredients, which stay on disk. No graph
through k models is ever built, so memory does not grow with k (Model soups, Wortsman et al. 2022,
arXiv 2203.05482, App. I, held all of them). The passes have one meaning and two ways to run: in
NumPy, block by block through the cache (`host_blocks`), and in torch, with blocks on an accelerator
(`device_blocks`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._types import format_bytes
from stockpot.errors import RecipeError
from stockpot.formats.base import Checkpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """What one backward pass says of the coefficients.

    Attributes:
        centred: ⟨g_l, θ_{i,l} − m_l⟩, float64 of shape (groups, k).
        mean: ⟨g_l, m_l⟩, float64 of shape (groups,). Coefficients that sum to one do not feel it.
    """

    centred: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Elements `start:stop` of tensor `name`."""

    name: str
    start: int
    stop: int


class IngredientBlocks(ABC):
    """The values of k ingredients, gone over block by block in a working precision.

    It has state: the buffers, the ingredients that it holds, and the direction of the next pass.
    Every second pass runs backwards, so that what the page cache still has of the last one is used
    first. No result depends on the direction.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` or `torch.float64`.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], names: Sequence[str], *, dtype: torch.dtype
    ) -> None:
        self._checkpoints = tuple(checkpoints)
        self._names = tuple(names)
        self._dtype = dtype
        self._backwards = False

    @property
    @abstractmethod
    def buffer_bytes(self) -> int:
        """Bytes of all buffers."""

    @property
    @abstractmethod
    def n_held(self) -> int:
        """How many ingredients are held in memory; the others are read from disk in every pass."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all ingredients that one pass goes over."""
        return len(self._checkpoints) * self._bytes_of_one()

    @abstractmethod
    def rebuild(
        self,
        coefficients: torch.Tensor,
        group_index: Mapping[str, int],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        """Write θ_l = Σ_i c_{i,l} θ_{i,l} into `targets`, in place.

        Args:
            coefficients: (groups, k), float64.
            group_index: row of `coefficients` for each name.
            targets: tensors by name, in the working precision.
        """

    @abstractmethod
    def inner_products(
        self, gradients: Mapping[str, torch.Tensor], group_index: Mapping[str, int], n_groups: int
    ) -> InnerProducts:
        """Inner products of `gradients` with the ingredients, summed by group.

        Args:
            gradients: ∂L/∂θ by name.
            group_index: row of the result for each name.
            n_groups: rows of the result.
        """

    @abstractmethod
    def spreads(self, group_index: Mapping[str, int], n_groups: int) -> torch.Tensor:
        """‖θ_{i,l} − m_l‖ by group and ingredient: float64, (groups, k)."""

    def _bytes_of_one(self) -> int:
        return sum(self._checkpoints[0][name].nbytes for name in self._names)

    def _spans(self, names: Sequence[str], n_elements: int) -> Iterator[Span]:
        for name in names:
            numel = self._checkpoints[0][name].numel
            for start in range(0, numel, n_elements):
                yield Span(name, start, min(start + n_elements, numel))

    def _turn(self) -> bool:
        """Whether this pass runs backwards; the next one runs the other way."""
        backwards, self._backwards = self._backwards, not self._backwards
        return backwards

    def _n_fitting(self, max_memory: int | None) -> int:
        """How many ingredients fit beside the buffers.

        Raises:
            RecipeError: not even the buffers do.
        """
        if max_memory is None:
            return 0
        if max_memory < self.buffer_bytes:
            raise RecipeError(
                f"max_memory leaves {format_bytes(max(max_memory, 0))} for the blocks of "
                f"{len(self._checkpoints)} ingredients, beside the model and its gradient; at "
                f"least {format_bytes(self.buffer_bytes)} are needed: give "
                f"{format_bytes(self.buffer_bytes - max_memory)} more (--max-memory)"
            )
        fitting = (max_memory - self.buffer_bytes) // max(self._bytes_of_one(), 1)
        return min(len(self._checkpoints), fitting)


def stored_values(checkpoint: Checkpoint, name: str) -> npt.NDArray[np.generic]:
    """All elements of a tensor in their stored type, BF16 as uint16; mapped, not copied."""
    return checkpoint.raw(name).view(checkpoint[name].dtype.storage)
