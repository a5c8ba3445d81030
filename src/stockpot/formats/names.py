"""Prefixes that wrappers put before the names of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.formats.base import Checkpoint, View
from stockpot.io.objects import RemoteFile

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Put there by `DataParallel`/`DistributedDataParallel` and by `torch.compile`."""


class RenamedCheckpoint(View):
    """A checkpoint with some of its tensors under other names.

    Args:
        source: the checkpoint as it is.
        names: stored name → new name, of those that change.
        notes: what a person should know of it; they come before those of `source`.
    """

    def __init__(
        self, source: Checkpoint, names: Mapping[str, str], *, notes: tuple[str, ...] = ()
    ) -> None:
        self._stored = {names.get(name, name): name for name in source}
        groups = (sorted(names.get(name, name) for name in group) for group in source.tied)
        # The fingerprints of the two differ, and are cached by their files and sections.
        changes = xxhash.xxh3_64_hexdigest(repr(sorted(names.items())).encode("utf-8", "replace"))
        super().__init__(
            source,
            {new: replace(source[old], name=new) for new, old in self._stored.items()},
            tied=tuple(sorted(tuple(group) for group in groups)),
            notes=(*notes, *source.notes),
            section=f"{source.section}:{changes}",
        )
        self.computed = source.computed

    def scattered(self, name: str) -> bool:
        """As in the source."""
        return self.source.scattered(self._stored[name])

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """From the source."""
        return self.source.part(self._stored[name], start, stop)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in the source."""
        return self.source.in_store(self._stored[name])

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, which may have another name in the source."""
        self[name]  # refuses names that there are not
        return self.source.raw(self._stored[name])


def without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` without the wrappers' prefixes that *all* its names carry, and a note of it."""
    prefix = common_wrappers(checkpoint)
    if not prefix:
        return checkpoint
    note = f"the prefix {prefix!r} was removed from all {len(checkpoint)} names"
    names = {name: name[len(prefix) :] for name in checkpoint}
    return RenamedCheckpoint(checkpoint, names, notes=(note,))


def common_wrappers(names: Iterable[str]) -> str:
    """The prefix of wrappers, one or several, that all `names` carry; empty for none.

    >>> common_wrappers(["module._orig_mod.w", "module._orig_mod.b"])
    'module._orig_mod.'
    >>> common_wrappers(["module.w", "b"])
    ''
    """
    given = list(names)
    skip = 0
    while prefix := next((p for p in WRAPPER_PREFIXES if _all_carry(given, p, skip)), None):
        skip += len(prefix)
    return given[0][:skip] if given else ""


def _all_carry(names: list[str], prefix: str, skip: int) -> bool:
    # A name that would be left empty is no wrapped name.
    return bool(names) and all(
        name.startswith(prefix, skip) and len(name) > skip + len(prefix) for name in names
    )
