"""Files seen as arrays of bytes, mapped and not copied."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells one state of a file from another without reading it; times in nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> FileId:
        """The identity that `found`, the result of a `stat` of `path`, shows."""
        absolute = str(os.path.abspath(path))  # noqa: PTH100 - not resolve(): links are kept
        return cls(absolute, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class MappedFile:
    """A regular file whose bytes are mapped while anybody holds a piece of them.

    It has state because the mapping is shared between the pieces and dropped with the last of
    them: a mapping keeps a file descriptor, and 72 checkpoints of 30 shards would run out of these.
    The file must stay as it was when first looked at; mapping it again after a change is refused,
    and a file that is *truncated in place* while it is read ends the process with SIGBUS, as with
    every program that maps files.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointFormatError(f"{self.path} is not a regular file")
            self.id = FileId.of(self.path, found)
        self._mapping: weakref.ref[mmap.mmap] | None = None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.id.size

    def bytes(self) -> npt.NDArray[np.uint8]:
        """The whole file as a read-only array of bytes.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        # An empty file cannot be mapped.
        if self.id.size == 0:
            return np.zeros(0, np.uint8)
        mapping = self._mapping() if self._mapping is not None else None
        if mapping is None:
            mapping = self._remap()
        return np.frombuffer(mapping, np.uint8)

    def _remap(self) -> mmap.mmap:
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123
            if FileId.of(self.path, os.fstat(file.fileno())) != self.id:
                raise CheckpointError(
                    f"{self.path} changed after it was opened; open it again to read the new one"
                )
            mapping = mmap.mmap(file.fileno(), self.id.size, access=mmap.ACCESS_READ)
        self._mapping = weakref.ref(mapping)
        return mapping
