"""A checkpoint put together from tensors of others, such as the layers of a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.formats.base import Checkpoint

Stored = Mapping[str, tuple[int, str]]
"""Name → which checkpoint it comes from, and its name there."""


class Assembled(Checkpoint):
    """Tensors of several checkpoints under names of their own. Nothing is copied.

    It is called after the first of them, whose configuration and other files an output takes over.

    Args:
        sources: the checkpoints.
        stored: where each tensor comes from.
        layers: for each layer, the number that it had; None for what has no layers.
    """

    format = "assembled"

    def __init__(
        self, sources: Sequence[Checkpoint], stored: Stored, *, layers: tuple[int, ...] | None
    ) -> None:
        self.sources, self.stored, self.layers = tuple(sources), dict(stored), layers
        specs = {name: replace(sources[i][old], name=name) for name, (i, old) in stored.items()}
        new = [{old: name for name, (i, old) in stored.items() if i == n}
               for n in range(len(sources))]  # fmt: skip
        groups = [
            tuple(sorted(names[old] for old in group if old in names))
            for names, source in zip(new, sources, strict=True)
            for group in source.tied
        ]
        mapping = sorted((name, *place) for name, place in stored.items())
        super().__init__(
            sources[0].path,
            specs,
            metadata=sources[0].metadata,
            tied=tuple(sorted(group for group in groups if len(group) > 1)),
            notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
            files=tuple(file for source in sources for file in source.files),
            section=xxhash.xxh3_128_hexdigest(repr(mapping).encode(errors="surrogateescape")),
        )

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, from where it comes from."""
        self[name]  # refuses names that there are not
        i, old = self.stored[name]
        return self.sources[i].raw(old)
