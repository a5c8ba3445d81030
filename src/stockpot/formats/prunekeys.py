"""Tensors as `torch.nn.utils.prune` keeps them while a model is pruned: `w_orig` and `w_mask`.

Until `prune.remove` is called, a pruned module's state holds two tensors in place of `weight`: the
values before pruning and the mask (1 kept, 0 pruned). Tools that average such files average masks.
Here they are one tensor, their product, as it was in every forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.zeros import nonzero
from stockpot.tensors.spec import TensorSpec

_ORIG, _MASK = "_orig", "_mask"


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


class PruneKeysCheckpoint(Checkpoint):
    """A checkpoint with such pairs, seen as the pruned tensors: +0.0 where the mask is 0.

    Args:
        stored: the checkpoint as it is in the file.

    Attributes:
        pruned: names of the tensors that were merged.
    """

    computed = True

    def __init__(self, stored: Checkpoint) -> None:
        self._stored = stored
        self.format = stored.format
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
            stored.path,
            specs,
            metadata=stored.metadata,
            tied=tuple(group for group in stored.tied if not hidden & set(group)),
            notes=(*stored.notes, note),
            files=stored.files,
            section=stored.section,
        )

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`; a new array, if it is a pruned one.

        Raises:
            CheckpointFormatError: a mask holds other values than 0 and 1.
        """
        spec = self[name]
        if name not in self.pruned:
            return self._stored.raw(name)
        mask = self._stored[name + _MASK]
        values = self._stored.raw(mask.name)
        kept = nonzero(values, mask.dtype)
        # In bytes, because no arithmetic here knows every dtype: each 1 is like the others.
        items = values.reshape(mask.numel, mask.dtype.bits // 8)[kept]
        if items.size and not _is_one(items, mask):
            raise CheckpointFormatError(
                f"{self.path}: {mask.name} holds other values than 0 and 1; expected the mask of "
                "torch.nn.utils.prune"
            )
        result = self._stored.raw(name + _ORIG).view(spec.dtype.storage).copy()
        result[~kept] = 0
        raw = result.view(np.uint8)
        raw.flags.writeable = False
        return raw


def _is_one(items: npt.NDArray[np.uint8], mask: TensorSpec) -> bool:
    """Whether every row of `items`, the bytes of elements that are not zero, is a 1."""
    if not np.array_equal(items, np.broadcast_to(items[0], items.shape)):
        return False
    if mask.dtype.value == "BF16":
        return bool(items[0].tobytes() == b"\x80\x3f")
    return bool(items[0].view(mask.dtype.storage)[0] == 1)
