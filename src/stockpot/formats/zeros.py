"""Which values are exactly zero, and whether so many are that a checkpoint counts as pruned.

docs/design/sparse-ingredients.md has the rule and what looking for zeros costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.formats.base import Checkpoint
from stockpot.formats.encodings import CompressedCheckpoint
from stockpot.tensors.rounding import nonzero
from stockpot.tensors.spec import TensorSpec

SPARSE_ABOVE = 0.1
"""A checkpoint counts as sparse when a greater share of its weights than this is exactly zero.

Weights are the values of floating tensors of two or more dimensions; one that is zero throughout is
a fresh layer and no pruned one, and is set aside. Trained weights are almost never exactly zero:
what is seen below this are rows of padding and values too small for float16.
"""

# A sample that is off by a fifth is still on the right side of this.
_LOOK_CLOSER_ABOVE = 0.02
_N_TENSORS = 16
_N_PIECES = 4
_PIECE = 512
_PIECE_ITEMS = 1 << 20  # a multiple of 8, so that the bits of pieces join
_Raw = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Zeros:
    """How many weights are zero in several checkpoints, and in all of them at once.

    Attributes:
        sizes: name → elements.
        counts: for each checkpoint, name → its zeros.
        common: name → positions that are zero in every checkpoint.
        patterns: for each checkpoint, a hash of where its zeros are.
    """

    sizes: dict[str, int]
    counts: tuple[dict[str, int], ...]
    common: dict[str, int]
    patterns: tuple[str, ...]

    @property
    def sparse(self) -> tuple[int, ...]:
        """Positions of the checkpoints that count as sparse."""
        return tuple(i for i, count in enumerate(self.counts) if self._share(count) > SPARSE_ABOVE)

    def _share(self, count: dict[str, int]) -> float:
        pruned = [name for name, n in count.items() if n < self.sizes[name]]
        total = sum(self.sizes[name] for name in pruned)
        return sum(count[name] for name in pruned) / max(1, total)


def sampled_sparsity(checkpoint: Checkpoint, names: Sequence[str]) -> float:
    """About the share of zeros in the tensors `names`, those set aside that show nothing else.

    Reads 2,048 values at most of each of 16 tensors, in four places of it.
    """
    if isinstance(checkpoint, CompressedCheckpoint):
        return checkpoint.sparsity  # known without looking
    n_looked = min(len(names), _N_TENSORS)
    specs = [checkpoint[names[i * len(names) // n_looked]] for i in range(n_looked)]
    pieces = checkpoint.pieces(
        (spec.name, start * spec.dtype.storage.itemsize, stop * spec.dtype.storage.itemsize)
        for spec in specs
        for start, stop in _places(spec.numel)
    )
    zeros, total = 0.0, 0
    for spec in specs:
        sizes = [stop - start for start, stop in _places(spec.numel)]
        kept = sum(int(np.count_nonzero(nonzero(next(pieces), spec.dtype))) for _ in sizes)
        share = 1 - kept / sum(sizes)
        if share < 1:
            zeros += share * spec.numel
            total += spec.numel
    return zeros / max(1, total)


def _places(n_items: int) -> list[tuple[int, int]]:
    """First and last item of the pieces that are looked at, evenly spread."""
    if n_items <= _N_PIECES * _PIECE:
        return [(0, n_items)]
    last = n_items - _PIECE
    starts = (last * i // (_N_PIECES - 1) for i in range(_N_PIECES))
    return [(start, start + _PIECE) for start in starts]


def count_zeros(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> Zeros | None:
    """The zeros of `checkpoints`, of one layout, or None where a sample says that none is sparse.

    Dense checkpoints cost a few pages of each tensor; others are read once, in pieces.

    Args:
        checkpoints: their tensors `names` are alike.
        names: floating tensors with elements, of two dimensions or more.
    """
    if not any(sampled_sparsity(one, names) > _LOOK_CLOSER_ABOVE for one in checkpoints):
        return None
    hashes = [xxhash.xxh3_128() for _ in checkpoints]
    counts: list[dict[str, int]] = [{} for _ in checkpoints]
    common: dict[str, int] = {}
    for name in names:
        specs = [checkpoint[name] for checkpoint in checkpoints]
        found = np.zeros(len(checkpoints) + 1, np.int64)
        for pieces in _pieces([checkpoint.reader(name) for checkpoint in checkpoints], specs):
            kept = [nonzero(one, spec.dtype) for one, spec in zip(pieces, specs, strict=True)]
            for state, one in zip(hashes, kept, strict=True):
                state.update(np.packbits(one).data)
            either = np.logical_or.reduce(kept)
            found += [one.size - np.count_nonzero(one) for one in (*kept, either)]
        for count, n in zip((*counts, common), found.tolist(), strict=True):
            count[name] = n
    sizes = {name: checkpoints[0][name].numel for name in names}
    zeros = Zeros(sizes, tuple(counts), common, tuple(state.hexdigest() for state in hashes))
    return zeros if zeros.sparse else None


def _pieces(
    readers: Sequence[Callable[[int, int], _Raw]], specs: Sequence[TensorSpec]
) -> Iterator[list[_Raw]]:
    sizes = [spec.dtype.storage.itemsize for spec in specs]
    for start in range(0, specs[0].numel, _PIECE_ITEMS):
        stop = start + _PIECE_ITEMS
        yield [read(start * n, stop * n) for read, n in zip(readers, sizes, strict=True)]


def is_table(checkpoints: Sequence[Checkpoint], name: str) -> bool:
    """Whether a tensor is a constant of the architecture, such as a triangular attention mask.

    It is the same in all `checkpoints` and holds, beside zeros, one value only.
    """
    spec = checkpoints[0][name]
    values = checkpoints[0].raw(name).view(spec.dtype.storage)
    kept = values[nonzero(values.view(np.uint8), spec.dtype)]
    if kept.size and (kept != kept[0]).any():
        return False
    return all(
        one[name].dtype == spec.dtype and np.array_equal(one.raw(name), checkpoints[0].raw(name))
        for one in checkpoints[1:]
    )
