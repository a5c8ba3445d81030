"""The same task over other splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from stockpot.evaluate.task import Split, Task


class _View:
    """A task whose splits are replaced; everything else is the original's."""

    def __init__(self, task: Task, splits: Mapping[str, Split]) -> None:
        self._task = task
        self.splits = dict(splits)

    def __getattr__(self, name: str) -> Any:
        # Asked only for what the view itself lacks. Dunder names are the interpreter's: answering
        # for the original would let copy and pickle see another object's state.
        if name.startswith("__") or name == "_task":
            raise AttributeError(name)
        return getattr(self._task, name)


def with_splits(task: Task, splits: Mapping[str, Split]) -> Task:
    """`task` with `splits` in place of its own; works for any task, whatever its class."""
    return cast(Task, _View(task, splits))


def part_of(split: Split, indices: Sequence[int], *, fingerprint: str) -> Split:
    """The examples of `split` at `indices`, with the same role.

    Args:
        split: the whole.
        indices: positions in it.
        fingerprint: of the whole; the part's is made from it and the indices, so that no example
            has to be read.
    """
    import hashlib

    import numpy as np
    import torch
    from torch.utils.data import Subset, TensorDataset

    chosen = np.asarray(indices, np.int64)
    digest = hashlib.sha256(fingerprint.encode() + chosen.tobytes()).hexdigest()[:32]
    if type(split.dataset) is TensorDataset:
        rows = torch.from_numpy(chosen)
        part: Any = TensorDataset(*(tensor[rows] for tensor in split.dataset.tensors))
    else:
        part = Subset(split.dataset, chosen.tolist())
    return Split(part, role=split.role, fingerprint=digest)
