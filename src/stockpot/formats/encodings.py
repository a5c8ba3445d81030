"""Tensors that are stored as several others, seen as the one that they stand for.

*sparse-bitmask*, the layout of compressed-tensors. A tensor `P.weight` of shape (d₁, …, dₙ), n ≥ 1,
is four: `P.shape` (I64, its n sizes), `P.compressed` (its dtype, the non-zero values in row-major
order), `P.bitmask` (U8, one bit for each element, lowest bit first, each row of the last dimension
filled up to whole bytes) and `P.row_offsets` (I64, how many values stand before each index of the
first dimension). Tensors that are stored dense stand beside them as they are. Two-dimensional
tensors are byte for byte those of compressed-tensors 0.13; docs/design/sparse-storage.md says where
others differ, and why.

*torch.nn.utils.prune*. Until `prune.remove` is called, a pruned module's state holds `w_orig`, the
values before pruning, and `w_mask` (1 kept, 0 pruned) in place of `w`. Tools that average such
files average masks. Here they are one tensor, their product, as it was in every forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointFormatError
from stockpot.formats.base import Checkpoint, View
from stockpot.tensors.rounding import nonzero
from stockpot.tensors.spec import DType, TensorSpec

PARTS = ("shape", "compressed", "bitmask", "row_offsets")
"""Last part of the names of the four tensors that stand for one."""

_SUFFIX = ".weight"
_ORIG, _MASK = "_orig", "_mask"
_BLOCK_ITEMS = 1 << 20
_MAX_ROWS = 2**63 - 1
_Raw = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a tensor: the last dimension, and how many of them there are.

    Attributes:
        n: rows.
        length: elements of a row.
        per_offset: rows for which `row_offsets` has one entry.
    """

    n: int
    length: int
    per_offset: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Rows:
        """Those of a tensor of at least one dimension.

        >>> Rows.of((64, 3, 3, 3)).n, Rows.of((64, 3, 3, 3)).per_offset, Rows.of((7,)).n
        (576, 9, 1)
        """
        n = math.prod(shape[:-1])
        return cls(n, shape[-1], n // max(1, shape[0]) if len(shape) > 1 else 1)

    @property
    def n_bytes(self) -> int:
        """Bytes of the bits of a row."""
        return -(-self.length // 8)


def row_blocks(rows: Rows) -> Iterator[tuple[int, int]]:
    """First and last row of pieces of about a million elements, a row at least."""
    step = max(1, _BLOCK_ITEMS // max(1, rows.length))
    return ((start, min(start + step, rows.n)) for start in range(0, rows.n, step))


def part_specs(spec: TensorSpec, n_values: int) -> dict[str, TensorSpec]:
    """The four tensors that hold `spec` when `n_values` of its elements are not zero.

    >>> specs = part_specs(TensorSpec("fc.weight", DType.F32, (3, 10)), 4)
    >>> {part: specs[part].shape for part in PARTS}
    {'shape': (2,), 'compressed': (4,), 'bitmask': (3, 2), 'row_offsets': (3,)}
    """
    prefix = spec.name.removesuffix(_SUFFIX)
    bits = (*spec.shape[:-1], Rows.of(spec.shape).n_bytes)
    offsets = spec.shape[:1] if len(spec.shape) > 1 else ()
    shapes = {
        "shape": (DType.I64, (len(spec.shape),)),
        "compressed": (spec.dtype, (n_values,)),
        "bitmask": (DType.U8, bits),
        "row_offsets": (DType.I64, offsets),
    }
    return {
        part: TensorSpec(f"{prefix}.{part}", dtype, shape)
        for part, (dtype, shape) in shapes.items()
    }


def is_compressed(checkpoint: Mapping[str, TensorSpec]) -> bool:
    """Whether some of its tensors are stored in this layout."""
    return bool(_prefixes(checkpoint))


def _prefixes(checkpoint: Mapping[str, TensorSpec]) -> list[str]:
    """Of the tensors in this layout; other tensors may have one of the four names by chance."""
    found = []
    for name, spec in checkpoint.items():
        prefix, dot, last = name.rpartition(".")
        if not dot or last != "bitmask" or spec.dtype is not DType.U8:
            continue
        if all(f"{prefix}.{part}" in checkpoint for part in ("compressed", "shape")):
            found.append(prefix)
    return found


class CompressedCheckpoint(View):
    """A checkpoint with tensors in this layout, seen as the dense one that it stands for.

    Names, shapes, values and fingerprint are those of the dense checkpoint. `raw` expands a whole
    tensor, in memory of its own.

    Args:
        stored: the checkpoint as it is in the file.

    Attributes:
        n_sparse: how many tensors are stored sparse.
        n_zeros: zeros in those.
        sparsity: share of zeros in them, 0..1.
        stored_bytes: of all tensors as they are stored.

    Raises:
        CheckpointFormatError: the four tensors that stand for one contradict each other.
    """

    computed = True

    def __init__(self, stored: Checkpoint) -> None:
        parts = {prefix: _checked(stored, prefix) for prefix in _prefixes(stored)}
        self._prefix = {spec.name: prefix for prefix, spec in parts.items()}
        hidden = {f"{prefix}.{part}" for prefix in parts for part in PARTS}
        specs = {name: spec for name, spec in stored.items() if name not in hidden}
        specs |= {spec.name: spec for spec in parts.values()}
        n_values = sum(stored[f"{prefix}.compressed"].numel for prefix in parts)
        n_elements = sum(spec.numel for spec in parts.values())
        self.n_sparse = len(parts)
        self.n_zeros = n_elements - n_values
        self.sparsity = self.n_zeros / max(1, n_elements)
        self.stored_bytes = stored.n_bytes
        super().__init__(
            stored,
            specs,
            tied=tuple(group for group in stored.tied if not hidden & set(group)),
            notes=(*stored.notes, self._note(len(specs))),
        )
        self.format = f"{stored.format}+bitmask"

    def _note(self, n: int) -> str:
        return (
            f"{self.n_sparse} of {n} tensors are stored sparse (sparse-bitmask): "
            f"{100 * self.sparsity:.2f} % of their values are zero"
        )

    def raw(self, name: str) -> _Raw:
        """The bytes of tensor `name`; expanded, if it is stored sparse.

        Raises:
            CheckpointFormatError: its bitmask marks another number of values than there are.
        """
        spec = self[name]
        if name not in self._prefix:
            return self.source.raw(name)
        prefix, rows = self._prefix[name], Rows.of(spec.shape)
        values = self.source.raw(f"{prefix}.compressed").view(spec.dtype.storage)
        bits = self.source.raw(f"{prefix}.bitmask").reshape(rows.n, rows.n_bytes)
        result = np.zeros(spec.numel, spec.dtype.storage)
        used = 0
        for start, stop in row_blocks(rows) if spec.numel else ():
            kept = np.unpackbits(bits[start:stop], axis=1, count=rows.length, bitorder="little")
            n = int(np.count_nonzero(kept))
            if used + n <= values.size:
                block = result[start * rows.length : stop * rows.length]
                block[kept.reshape(-1).view(np.bool_)] = values[used : used + n]
            used += n
        if used != values.size:
            raise CheckpointFormatError(
                f"{self.path}: {prefix}.bitmask marks {used} values and {prefix}.compressed holds "
                f"{values.size}; expected as many: the file is damaged"
            )
        raw = result.view(np.uint8)
        raw.flags.writeable = False
        return raw


def _checked(stored: Checkpoint, prefix: str) -> TensorSpec:
    """The tensor that the four at `prefix` stand for, from its shape and their specs."""
    missing = [part for part in PARTS if f"{prefix}.{part}" not in stored]
    if missing:
        raise _damaged(stored, prefix, f"{missing[0]} is missing (only sparse-bitmask is read)")
    shape = stored[f"{prefix}.shape"]
    if shape.dtype is not DType.I64 or len(shape.shape) != 1 or not 1 <= shape.numel <= 64:
        raise _damaged(stored, prefix, f"its shape is {shape.dtype.value} {shape.shape}")
    sizes = tuple(int(n) for n in stored.raw(shape.name).view("<i8"))
    values, bits = stored[f"{prefix}.compressed"], stored[f"{prefix}.bitmask"]
    spec = TensorSpec(f"{prefix}{_SUFFIX}", values.dtype, sizes)
    # The bits of a hostile shape are in the file, so that it claims eight elements a byte at most.
    if min(sizes) < 0 or bits.shape != (*sizes[:-1], -(-sizes[-1] // 8)):
        raise _damaged(stored, prefix, f"its shape {sizes} does not fit its bits {bits.shape}")
    # Rows without elements have no bits, so that a few bytes could claim any number of them.
    if Rows.of(sizes).n > _MAX_ROWS:
        raise _damaged(stored, prefix, f"its shape {sizes} has more than {_MAX_ROWS} rows")
    if len(values.shape) != 1 or values.numel > spec.numel or spec.dtype.bits < 8:
        raise _damaged(
            stored, prefix, f"it has {values.dtype.value} values {values.shape} for {sizes}"
        )
    if spec.name in stored:
        raise _damaged(stored, prefix, f"{spec.name} is there as well")
    return spec


def _damaged(stored: Checkpoint, prefix: str, what: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{stored.path}: {prefix}{_SUFFIX} is not stored as sparse-bitmask should be: {what}; "
        f"expected {', '.join(PARTS)} that agree"
    )


def pruned_names(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names of the tensors that stand in `specs` as `name_orig` and `name_mask`.

    Other tensors may end like one of the two by chance; both, of one shape, and without `name`
    itself, do not.
    """
    return [
        name
        for given, spec in specs.items()
        if given.endswith(_ORIG)
        and (name := given.removesuffix(_ORIG)) not in specs
        and (mask := specs.get(name + _MASK)) is not None
        and mask.shape == spec.shape
        and min(mask.dtype.bits, spec.dtype.bits) >= 8
    ]


class PruneKeysCheckpoint(View):
    """A checkpoint with such pairs, seen as the pruned tensors: +0.0 where the mask is 0.

    Args:
        stored: the checkpoint as it is in the file.

    Attributes:
        pruned: names of the tensors that were merged.
    """

    computed = True

    def __init__(self, stored: Checkpoint) -> None:
        self.pruned = tuple(pruned_names(stored))
        hidden = {name + end for name in self.pruned for end in (_ORIG, _MASK)}
        specs = {name: spec for name, spec in stored.items() if name not in hidden}
        specs |= {name: replace(stored[name + _ORIG], name=name) for name in self.pruned}
        n = len(self.pruned)
        note = (
            f"{n} tensor{'s' * (n != 1)} pruned with torch.nn.utils.prune "
            f"{'were' if n != 1 else 'was'} merged from {self.pruned[0]}_orig and _mask"
            + (", ..." if n > 1 else "")
        )
        super().__init__(
            stored,
            specs,
            tied=tuple(group for group in stored.tied if not hidden & set(group)),
            notes=(*stored.notes, note),
        )

    def raw(self, name: str) -> _Raw:
        """The bytes of tensor `name`; a new array, if it is a pruned one.

        Raises:
            CheckpointFormatError: a mask holds other values than 0 and 1.
        """
        spec = self[name]
        if name not in self.pruned:
            return self.source.raw(name)
        mask = self.source[name + _MASK]
        values = self.source.raw(mask.name)
        kept = nonzero(values, mask.dtype)
        # In bytes, because no arithmetic here knows every dtype: each 1 is like the others.
        items = values.reshape(mask.numel, mask.dtype.bits // 8)[kept]
        if items.size and not _is_one(items, mask):
            raise CheckpointFormatError(
                f"{self.path}: {mask.name} holds other values than 0 and 1; expected the mask of "
                "torch.nn.utils.prune"
            )
        result = self.source.raw(name + _ORIG).view(spec.dtype.storage).copy()
        result[~kept] = 0
        raw = result.view(np.uint8)
        raw.flags.writeable = False
        return raw


def _is_one(items: _Raw, mask: TensorSpec) -> bool:
    """Whether every row of `items`, the bytes of elements that are not zero, is a 1."""
    if not np.array_equal(items, np.broadcast_to(items[0], items.shape)):
        return False
    if mask.dtype.value == "BF16":
        return bool(items[0].tobytes() == b"\x80\x3f")
    return bool(items[0].view(mask.dtype.storage)[0] == 1)
