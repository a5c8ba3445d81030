"""Passes over ingredients on an accelerator, and which passes serve which device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.base import Checkpoint
from stockpot.mixing.adapter_blocks import AdapterBlocks
from stockpot.mixing.blocks import IngredientBlocks, InnerProducts, Span, stored_values
from stockpot.mixing.host_blocks import HostBlocks

if TYPE_CHECKING:
    import torch


_BUFFER_BYTES = 256 << 20
_MATRICES = 3  # two buffers, and the scratch of one
_SUM_WIDTH = 1024
"""Products are summed in the working precision over this many elements, in float64 beyond."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A span of all k ingredients: (k, n) values."""

    span: Span
    values: torch.Tensor


class DeviceBlocks(IngredientBlocks):
    """Passes in torch; a thread fills one block while the other is used.

    Values are centred on the mean of the ingredients, made block by block, for the reason that
    `HostBlocks` gives.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` or `torch.float64`.
        device: where blocks and held ingredients live.
        max_memory: bytes that buffers and held ingredients may take together; when None, buffers
            take at most 256 MiB, whatever k is, and nothing is held.
        block_elements: most elements of a block; fewer where k or `max_memory` ask for it.

    Raises:
        RecipeError: `max_memory` is less than the smallest buffers need.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        names: Sequence[str],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_memory: int | None = None,
        block_elements: int = 1 << 20,
    ) -> None:
        super().__init__(checkpoints, names, dtype=dtype)
        self._device = device
        column = _MATRICES * len(self._checkpoints) * dtype.itemsize
        # Half of what there is: the rest holds whole ingredients, which saves reading them.
        budget = _BUFFER_BYTES if max_memory is None else min(_BUFFER_BYTES, max_memory // 2)
        fitting = max(budget, column * _SUM_WIDTH) // column
        self._block_elements = min(block_elements, 1 << int(math.log2(fitting)))
        self._held = [
            {name: checkpoint.read(name).view(-1).to(device) for name in self._names}
            for checkpoint in self._checkpoints[: self._n_fitting(max_memory)]
        ]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the two block buffers and the scratch of one."""
        return _MATRICES * len(self._checkpoints) * self._block_elements * self._dtype.itemsize

    @property
    def n_held(self) -> int:
        """How many ingredients are held on the accelerator."""
        return len(self._held)

    def rebuild(
        self,
        coefficients: torch.Tensor,
        group_index: Mapping[str, int],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        """See `IngredientBlocks.rebuild`: m Σ c_i + Σ c_i (θ_i − m)."""
        import torch

        rows = coefficients.to(self._device, self._dtype)
        sums = coefficients.sum(dim=1).to(self._device, self._dtype)
        flat = {n: t.detach() if t.is_contiguous() else torch.empty_like(
            t, memory_format=torch.contiguous_format) for n, t in targets.items()}  # fmt: skip
        for block in self._blocks(list(targets)):
            span, values = block.span, block.values
            group = group_index[span.name]
            mean = values.mean(dim=0)
            mixed = (rows[group] @ values.sub_(mean)).addcmul_(mean, sums[group])
            flat[span.name].view(-1)[span.start : span.stop].copy_(mixed)
        for name, target in targets.items():
            if flat[name].data_ptr() != target.data_ptr():
                target.detach().copy_(flat[name])

    def inner_products(
        self, gradients: Mapping[str, torch.Tensor], group_index: Mapping[str, int], n_groups: int
    ) -> InnerProducts:
        """See `IngredientBlocks.inner_products`."""
        import torch

        from stockpot.tensors._devices_torch import widest

        shape, wide = (n_groups, len(self._checkpoints)), widest(self._device)
        centred = torch.zeros(shape, dtype=wide, device=self._device)
        means = torch.zeros(n_groups, dtype=wide, device=self._device)
        flat = {name: gradient.reshape(-1) for name, gradient in gradients.items()}
        for block in self._blocks(list(gradients)):
            span, values = block.span, block.values
            part = flat[span.name][span.start : span.stop].to(self._dtype)
            group, mean = group_index[span.name], values.mean(dim=0)
            centred[group] += _wide_products(values.sub_(mean), part, wide)
            means[group] += _wide_products(mean[None], part, wide)[0]
        return InnerProducts(centred.cpu().double(), means.cpu().double())

    def spreads(self, group_index: Mapping[str, int], n_groups: int) -> torch.Tensor:
        """See `IngredientBlocks.spreads`."""
        import torch

        from stockpot.tensors._devices_torch import widest

        shape, wide = (n_groups, len(self._checkpoints)), widest(self._device)
        squares = torch.zeros(shape, dtype=wide, device=self._device)
        for block in self._blocks(list(group_index)):
            block.values.sub_(block.values.mean(dim=0))
            squares[group_index[block.span.name]] += block.values.to(wide).square().sum(dim=1)
        return squares.sqrt().cpu().double()

    def _blocks(self, names: Sequence[str]) -> Iterator[_Block]:
        """All blocks of `names`, once.

        A block's values are overwritten by the next but one, so they must be used at once.
        """
        import torch

        spans = list(self._spans(names, self._block_elements))
        if self._turn():
            spans.reverse()
        shape = (len(self._checkpoints), self._block_elements)
        buffers = [torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(2)]
        with ThreadPoolExecutor(1, thread_name_prefix="stockpot-read") as reader:
            ahead: Future[_Block] | None = None
            for turn, span in enumerate(spans):
                block = ahead.result() if ahead is not None else self._fill(buffers[0], span)
                if turn + 1 < len(spans):
                    ahead = reader.submit(self._fill, buffers[(turn + 1) % 2], spans[turn + 1])
                yield block

    def _fill(self, buffer: torch.Tensor, span: Span) -> _Block:
        k, n = len(self._checkpoints), span.stop - span.start
        values = buffer.view(-1)[: k * n].view(k, n)
        for row, checkpoint in enumerate(self._checkpoints):
            if row < len(self._held):
                values[row].copy_(self._held[row][span.name][span.start : span.stop])
            else:
                values[row].copy_(_stored(checkpoint, span))
        return _Block(span, values)


def ingredient_blocks(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_memory: int | None = None,
) -> IngredientBlocks:
    """What goes over the values of k ingredients on `device`.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` (also for None) or `torch.float64`.
        device: where θ and its gradient are.
        max_memory: bytes that buffers and held ingredients may take together; None holds nothing.

    Raises:
        RecipeError: `max_memory` is less than the buffers need.
    """
    import torch

    device, dtype = torch.device(device), torch.float32 if dtype is None else dtype
    adapters = [one for one in checkpoints if isinstance(one, Adapter)]
    if len(adapters) == len(checkpoints) and len({id(one.base) for one in adapters}) == 1:
        return AdapterBlocks(adapters, names, dtype=dtype, device=device, max_memory=max_memory)
    if device.type == "cpu":
        return HostBlocks(checkpoints, names, dtype=dtype, max_memory=max_memory)
    return DeviceBlocks(checkpoints, names, dtype=dtype, device=device, max_memory=max_memory)


def _stored(checkpoint: Checkpoint, span: Span) -> torch.Tensor:
    """A span in its stored dtype: a copy, since mapped pages are read-only."""
    import torch

    from stockpot.tensors._torch import torch_dtype

    values = np.array(stored_values(checkpoint, span.name)[span.start : span.stop])
    return torch.from_numpy(values).view(torch_dtype(checkpoint[span.name].dtype))


def _wide_products(rows: torch.Tensor, vector: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """`rows @ vector` in `wide` over sums of `_SUM_WIDTH` products: (k, n) and (n,) to (k,)."""
    import torch

    whole = rows.shape[1] // _SUM_WIDTH * _SUM_WIDTH
    pieces = rows[:, :whole].reshape(len(rows), -1, _SUM_WIDTH).transpose(0, 1)
    sums = torch.matmul(pieces, vector[:whole].view(-1, _SUM_WIDTH, 1))
    rest = torch.mv(rows[:, whole:], vector[whole:])
    return sums.to(wide).sum(dim=0)[:, 0] + rest.to(wide)
