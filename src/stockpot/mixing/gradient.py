"""Gradients of a loss with respect to mixing coefficients, in the memory of one model.

For θ_l = Σ_i c_{i,l} θ_{i,l} the chain rule gives ∂L/∂c_{i,l} = ⟨∂L/∂θ_l, θ_{i,l}⟩: an ordinary
backward pass at θ and one pass of inner products over the ingredients, which stay on disk. No graph
through k models is ever built, so memory does not grow with k (Model soups, Wortsman et al. 2022,
arXiv 2203.05482, App. I, held all of them).

Both passes are centred on the mean m of the ingredients, made block by block. Fine-tuned models
differ by a fraction of a percent, so ⟨g, θ_i⟩ is a large common term plus a small difference, and
in float32 the difference would drown: ⟨g, θ_i − m⟩ does not cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stockpot._types import format_bytes
from stockpot.checkpoint.base import Checkpoint
from stockpot.errors import RecipeError

if TYPE_CHECKING:
    import torch

__all__ = ["Block", "IngredientBlocks", "InnerProducts"]

_BUFFER_BYTES = 128 << 20
_SUM_WIDTH = 1024
"""Products are summed in the working precision over this many elements, in float64 beyond."""


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
class Block:
    """Elements `start:stop` of tensor `name` of all k ingredients: (k, stop − start) values."""

    name: str
    start: int
    stop: int
    values: torch.Tensor


class IngredientBlocks:
    """The values of k ingredients, streamed block by block in a working precision.

    It has state because it owns two block buffers, the thread that fills one while the other is
    used, and the direction of the next pass: every second pass runs backwards, so that what the
    page cache still holds of the last pass is used first.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: the tensors to stream; tied tensors once.
        dtype: working precision, `torch.float32` or `torch.float64`.
        device: where blocks are handed out, and where held ingredients live.
        max_memory: bytes that buffers and held ingredients may take together; when None, buffers
            take at most 128 MiB, whatever k is, and nothing is held.
        block_elements: largest block; smaller where k or `max_memory` ask for it.

    Raises:
        RecipeError: `max_memory` is less than the two smallest buffers need.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        names: Sequence[str],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_memory: int | None = None,
        block_elements: int = 1 << 18,
    ) -> None:
        import torch

        self._checkpoints = tuple(checkpoints)
        self._names = tuple(names)
        self._dtype = torch.float32 if dtype is None else dtype
        self._device = torch.device(device)
        self._block_elements = _fitting_block(
            len(self._checkpoints), self._dtype.itemsize, block_elements, max_memory
        )
        budget = 0 if max_memory is None else max_memory - self.buffer_bytes
        self._held = self._hold(budget)
        self._backwards = False

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the two block buffers and the scratch of one."""
        return 3 * len(self._checkpoints) * self._block_elements * self._dtype.itemsize

    @property
    def n_held(self) -> int:
        """How many ingredients are held in memory; the others are read from disk in every pass."""
        return len(self._held)

    @property
    def n_bytes(self) -> int:
        """Bytes of all ingredients that one pass goes over."""
        return sum(c[name].nbytes for c in self._checkpoints for name in self._names)

    def blocks(self, names: Sequence[str] | None = None) -> Iterator[Block]:
        """All blocks of `names` (all, when None), once; the order alternates between passes.

        A block's values are overwritten by the next but one, so they must be used at once.
        """
        import torch

        k = len(self._checkpoints)
        ranges = list(self._ranges(self._names if names is None else names))
        if self._backwards:
            ranges.reverse()
        self._backwards = not self._backwards
        shape = (k, self._block_elements)
        buffers = [torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(2)]
        with ThreadPoolExecutor(1, thread_name_prefix="stockpot-read") as reader:
            ahead: Future[Block] | None = None
            for turn, span in enumerate(ranges):
                block = ahead.result() if ahead is not None else self._fill(buffers[0], *span)
                if turn + 1 < len(ranges):
                    ahead = reader.submit(self._fill, buffers[(turn + 1) % 2], *ranges[turn + 1])
                yield block

    def rebuild(
        self,
        coefficients: torch.Tensor,
        group_index: Mapping[str, int],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        """Write θ_l = m_l + Σ_i c_{i,l} (θ_{i,l} − m_l) + (Σ_i c_{i,l} − 1) m_l into `targets`.

        Args:
            coefficients: (groups, k), float64.
            group_index: row of `coefficients` for each name.
            targets: contiguous tensors by name, on `device`; rounded once to their own dtype.
        """
        rows = coefficients.to(self._device, self._dtype)
        sums = coefficients.sum(dim=1).to(self._device, self._dtype)
        for block in self.blocks(list(targets)):
            group = group_index[block.name]
            mean = block.values.mean(dim=0)
            block.values.sub_(mean)
            mixed = (rows[group] @ block.values).addcmul_(mean, sums[group])
            targets[block.name].detach().view(-1)[block.start : block.stop].copy_(mixed)

    def inner_products(
        self, gradients: Mapping[str, torch.Tensor], group_index: Mapping[str, int], n_groups: int
    ) -> InnerProducts:
        """Inner products of `gradients` with the ingredients, summed by group.

        Args:
            gradients: ∂L/∂θ by name, contiguous, on `device`.
            group_index: row of the result for each name.
            n_groups: rows of the result.
        """
        import torch

        k = len(self._checkpoints)
        centred = torch.zeros(n_groups, k, dtype=torch.float64)
        means = torch.zeros(n_groups, dtype=torch.float64)
        for block in self.blocks(list(gradients)):
            gradient = gradients[block.name].reshape(-1)[block.start : block.stop].to(self._dtype)
            mean = block.values.mean(dim=0)
            block.values.sub_(mean)
            group = group_index[block.name]
            centred[group] += _wide_products(block.values, gradient).cpu()
            means[group] += _wide_products(mean[None], gradient)[0].cpu()
        return InnerProducts(centred, means)

    def spreads(self, group_index: Mapping[str, int], n_groups: int) -> torch.Tensor:
        """‖θ_{i,l} − m_l‖ by group and ingredient: float64, (groups, k)."""
        import torch

        squares = torch.zeros(n_groups, len(self._checkpoints), dtype=torch.float64)
        for block in self.blocks(list(group_index)):
            block.values.sub_(block.values.mean(dim=0))
            squares[group_index[block.name]] += _wide_squares(block.values).cpu()
        return squares.sqrt()

    def _ranges(self, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        for name in names:
            numel = self._checkpoints[0][name].numel
            for start in range(0, numel, self._block_elements):
                yield name, start, min(start + self._block_elements, numel)

    def _fill(self, buffer: torch.Tensor, name: str, start: int, stop: int) -> Block:
        values = buffer.view(-1)[: buffer.shape[0] * (stop - start)].view(buffer.shape[0], -1)
        for row, checkpoint in enumerate(self._checkpoints):
            held = self._held.get(row)
            if held is not None:
                values[row].copy_(held[name][start:stop])
            else:
                values[row].copy_(_stored(checkpoint, name, start, stop))
        return Block(name, start, stop, values)

    def _hold(self, budget: int) -> dict[int, dict[str, torch.Tensor]]:
        held: dict[int, dict[str, torch.Tensor]] = {}
        for row, checkpoint in enumerate(self._checkpoints):
            budget -= sum(checkpoint[name].nbytes for name in self._names)
            if budget < 0:
                break
            held[row] = {
                name: checkpoint.read(name).view(-1).to(self._device) for name in self._names
            }
        return held


def _fitting_block(k: int, item_bytes: int, block_elements: int, max_memory: int | None) -> int:
    smallest = 3 * k * item_bytes * _SUM_WIDTH
    if max_memory is not None and max_memory < smallest:
        raise RecipeError(
            f"max_memory leaves {format_bytes(max(max_memory, 0))} for blocks of {k} ingredients; "
            f"at least {format_bytes(smallest)} more than the model and its gradient are needed"
        )
    # Half of what there is: the rest holds whole ingredients, which saves reading them.
    budget = _BUFFER_BYTES if max_memory is None else min(_BUFFER_BYTES, max_memory // 2)
    fitting = max(budget, smallest) // (3 * k * item_bytes)
    return min(block_elements, 1 << int(math.log2(fitting)))


def _stored(checkpoint: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    """Elements `start:stop` in their stored dtype: a copy, since mapped pages are read-only."""
    import torch

    from stockpot.checkpoint._torch import torch_dtype

    spec = checkpoint[name]
    size = spec.dtype.bits // 8
    raw = checkpoint.raw(name)[start * size : stop * size]
    return torch.from_numpy(np.array(raw, copy=True)).view(torch_dtype(spec.dtype))


def _wide_products(rows: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """`rows @ vector` in float64 over sums of `_SUM_WIDTH` products: (k, n) and (n,) to (k,)."""
    import torch

    whole = rows.shape[1] // _SUM_WIDTH * _SUM_WIDTH
    pieces = rows[:, :whole].reshape(len(rows), -1, _SUM_WIDTH).transpose(0, 1)
    sums = torch.matmul(pieces, vector[:whole].view(-1, _SUM_WIDTH, 1))
    rest = torch.mv(rows[:, whole:], vector[whole:])
    return sums.double().sum(dim=0)[:, 0] + rest.double()


def _wide_squares(rows: torch.Tensor) -> torch.Tensor:
    """Sums of squares of each row, in float64 over short sums: (k, n) to (k,)."""
    whole = rows.shape[1] // _SUM_WIDTH * _SUM_WIDTH
    pieces = rows[:, :whole].reshape(len(rows), -1, _SUM_WIDTH).square().sum(dim=2)
    return pieces.double().sum(dim=1) + rows[:, whole:].square().sum(dim=1).double()
