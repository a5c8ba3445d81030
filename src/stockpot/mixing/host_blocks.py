"""Passes over ingredients on the CPU: one read of memory for each value, the rest in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot.formats.base import Checkpoint
from stockpot.io.memory import is_mapped, read_ahead
from stockpot.mixing.blocks import IngredientBlocks, InnerProducts, Span, stored_values
from stockpot.tensors import centred
from stockpot.tensors.trim import Stored

if TYPE_CHECKING:
    import torch


_Values: TypeAlias = npt.NDArray[Any]
_Work: TypeAlias = Callable[[Span], npt.NDArray[np.float64]]

_SPAN = 1 << 20
"""Elements of a tensor that one thread takes at a time, and that are read ahead."""
_N_ARRAYS = 4
"""Of `centred.PART` values, that NumPy works with at a time where nothing is compiled."""


class HostBlocks(IngredientBlocks):
    """Passes in NumPy, whose loops let threads run beside each other.

    Values are centred on those of the first ingredient, in the cache: fine-tuned models differ by a
    fraction of a percent, so that ⟨g, θ_i⟩ is a large common term and a small difference, and in
    float32 the difference would drown. Sums over blocks are float64, and in one order whatever the
    threads do.

    Args:
        checkpoints: k ingredients with the same specs for `names`.
        names: floating tensors; tied tensors once.
        dtype: working precision, `torch.float32` or `torch.float64`.
        max_memory: bytes that buffers and held ingredients may take together; None holds nothing.
        n_threads: None takes as many as torch does.

    Raises:
        RecipeError: `max_memory` is less than the buffers need.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        names: Sequence[str],
        *,
        dtype: torch.dtype,
        max_memory: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        import torch

        super().__init__(checkpoints, names, dtype=dtype)
        self._numpy_dtype: np.dtype[np.floating] = np.dtype(
            np.float64 if dtype == torch.float64 else np.float32
        )
        self._n_threads = torch.get_num_threads() if n_threads is None else n_threads
        self._held = [
            {name: np.array(stored_values(checkpoint, name)) for name in self._names}
            for checkpoint in self._checkpoints[: self._n_fitting(max_memory)]
        ]
        # While a piece of a file is held it stays mapped, and its pages need not be found again.
        self._mapped: list[_Values] = []

    @property
    def buffer_bytes(self) -> int:
        """Bytes of what the threads work with, at most."""
        return self._n_threads * _N_ARRAYS * centred.PART * self._dtype.itemsize

    @property
    def n_held(self) -> int:
        """How many ingredients are held in memory; the others are read from disk in every pass."""
        return len(self._held)

    def rebuild(
        self,
        coefficients: torch.Tensor,
        group_index: Mapping[str, int],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        """See `IngredientBlocks.rebuild`: θ_0 Σ c_i + Σ c_i (θ_i − θ_0), rounded once at the end.

        Ingredients with coefficient 0 take no part.
        """
        import torch

        wholes = {n: t.detach() if t.is_contiguous() else torch.empty_like(
            t, memory_format=torch.contiguous_format) for n, t in targets.items()}  # fmt: skip
        flat = {name: target.view(-1).numpy() for name, target in wholes.items()}
        rows = coefficients.numpy()

        def work(span: Span) -> npt.NDArray[np.float64]:
            centred.mix(
                self._parts(span),
                rows[group_index[span.name]],
                flat[span.name][span.start : span.stop],
            )
            return np.zeros(0)

        self._over(list(targets), work)
        for name, target in targets.items():
            if wholes[name].data_ptr() != target.data_ptr():
                target.detach().copy_(wholes[name])

    def inner_products(
        self, gradients: Mapping[str, torch.Tensor], group_index: Mapping[str, int], n_groups: int
    ) -> InnerProducts:
        """See `IngredientBlocks.inner_products`."""
        import torch

        flat = {name: g.to(self._dtype).reshape(-1).numpy() for name, g in gradients.items()}

        def work(span: Span) -> npt.NDArray[np.float64]:
            return centred.dot(self._parts(span), flat[span.name][span.start : span.stop])

        sums = self._summed(list(gradients), work, group_index, n_groups)
        mean = sums[:, 0].clone()
        sums[:, 0] = 0  # of the first ingredient with itself
        shift = sums.mean(dim=1)
        return InnerProducts(sums - shift[:, None], torch.add(mean, shift))

    def spreads(self, group_index: Mapping[str, int], n_groups: int) -> torch.Tensor:
        """See `IngredientBlocks.spreads`."""

        def work(span: Span) -> npt.NDArray[np.float64]:
            return centred.squares(self._parts(span), self._numpy_dtype)

        return self._summed(list(group_index), work, group_index, n_groups).sqrt()

    def _summed(
        self, names: Sequence[str], work: _Work, group_index: Mapping[str, int], n_groups: int
    ) -> torch.Tensor:
        """What `work` gives of every span, summed by group in one order: float64 (groups, k)."""
        import torch

        sums = np.zeros((n_groups, len(self._checkpoints)))
        for span, found in self._over(names, work):
            sums[group_index[span.name]] += found
        return torch.from_numpy(sums)

    def _over(
        self, names: Sequence[str], work: _Work
    ) -> list[tuple[Span, npt.NDArray[np.float64]]]:
        """`work` on every span, by several threads; the results stand in the order of `names`."""
        spans = list(self._spans(names, _SPAN))
        order = list(reversed(spans)) if self._turn() else spans

        def one(turn: int) -> npt.NDArray[np.float64]:
            ahead = turn + self._n_threads
            if ahead < len(order):
                self._read_ahead(order[ahead])
            # An infinite weight makes the loss no number, and that is said where the loss is.
            with np.errstate(over="ignore", invalid="ignore"):
                return work(order[turn])

        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="stockpot-mix") as pool:
            found = list(pool.map(one, range(len(order))))
        if order is not spans:
            found.reverse()
        return list(zip(spans, found, strict=True))

    def _parts(self, span: Span) -> list[Stored]:
        """The values of a span of every ingredient, with their types."""
        return [
            Stored(row[span.start : span.stop], checkpoint[span.name].dtype.value)
            for row, checkpoint in zip(self._stored(span.name), self._checkpoints, strict=True)
        ]

    def _stored(self, name: str) -> list[_Values]:
        """The values of `name` of every ingredient, in their stored type."""
        rows = [
            self._held[row][name] if row < len(self._held) else stored_values(checkpoint, name)
            for row, checkpoint in enumerate(self._checkpoints)
        ]
        self._mapped = rows
        return rows

    def _read_ahead(self, span: Span) -> None:
        for checkpoint in self._checkpoints[len(self._held) :]:
            raw = checkpoint.raw(span.name)
            size = checkpoint[span.name].dtype.bits // 8
            if is_mapped(raw):
                read_ahead(raw[span.start * size : span.stop * size], wait=False)
