"""Local files: mapped as arrays of bytes, copied in blocks, never waited for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.io.files import open_file, read_at, write_at
from stockpot.io.scratch import scratch_folder

_COPY_BYTES = 4 << 20

NO_ETAG = "none"
"""In place of the ETag of an object whose server gives none."""


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells one state of a file from another without reading it; times in nanoseconds.

    Of an object in a store that is its `etag`, which is empty for a file.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    etag: str = ""

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> FileId:
        """The identity that `found`, the result of a `stat` of `path`, shows."""
        absolute = str(os.path.abspath(path))  # noqa: PTH100 - not resolve(): links are kept
        return cls(absolute, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def is_unchanged_since(self, other: FileId) -> bool:
        """Whether, since it was `other`, nobody wrote to the file nor put one in its place.

        The path does not count, nor the time of the last change of its entry: a new name, a second
        one and other rights change that. Nor does the device: a network's file system that is
        mounted again has another number.
        """
        now, then = ((f.size, f.mtime_ns, f.inode) for f in (self, other))
        return now == then


def require_unchanged(files: Iterable[FileId]) -> None:
    """Raise when a file is another than it was: longer, shorter, written to, or replaced.

    A file that is gone is no reason: what was mapped of it is what it held.

    Raises:
        CheckpointError: naming the file.
    """
    for file in files:
        if file.etag:  # every answer was checked
            continue
        try:
            found = FileId.of(file.path, os.stat(file.path))  # noqa: PTH116
        except OSError:
            continue
        if not found.is_unchanged_since(file):
            raise CheckpointError(
                f"{file.path} changed while it was read: what was made of it would be of two "
                "versions, and is not kept; run it again when nothing writes to the file"
            )


class Mapping:
    """Bytes of an open file, mapped read-only until nothing holds an array of them.

    `mmap.mmap` keeps a descriptor of its own before Python 3.13, so that no more files could be
    read side by side than a process may have open. The kernel needs none.
    """

    def __init__(self, fd: int, size: int) -> None:
        if not hasattr(mmap, "PROT_READ"):  # Windows, which has more handles to give
            self._kept = np.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_READ), np.uint8)
            address: int | None = self._kept.__array_interface__["data"][0]
        else:
            address = _mmap()(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            unmap = weakref.finalize(self, _munmap(), ctypes.c_void_p(address), size)
            unmap.atexit = False  # threads may still read at the end of the process
        self.__array_interface__ = {
            "data": (address, True), "shape": (size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


@functools.cache
def _mmap() -> Callable[..., int | None]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    found: Callable[..., int | None] = function
    return found


@functools.cache
def _munmap() -> Callable[..., int]:
    function = ctypes.CDLL(None).munmap
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    found: Callable[..., int] = function
    return found


class MappedFile:
    """A regular file whose bytes are mapped while anybody holds a piece of them.

    It has state because the mapping is shared between the pieces and dropped with the last of
    them: 72 checkpoints of 30 shards are many. It keeps no file descriptor, see `Mapping`.
    The file must stay as it was when first looked at; mapping it again after a change is refused,
    and `require_unchanged` finds one that came later. A file that is *truncated in place* while it
    is read ends the process with SIGBUS, as with every program that maps files, unless the reading
    is guarded (`stockpot.tensors.compiled.guarded`).
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointFormatError(f"{self.path} is not a regular file")
            self.id = FileId.of(self.path, found)
        self._mapping: weakref.ref[Mapping] | None = None

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
        return np.asarray(mapping)

    def _remap(self) -> Mapping:
        # By its absolute path: the working directory may be another by now.
        with open(self.id.path, "rb", buffering=0) as file:  # noqa: PTH123
            if not FileId.of(self.id.path, os.fstat(file.fileno())).is_unchanged_since(self.id):
                raise CheckpointError(
                    f"{self.path} changed after it was opened; open it again to read the new one"
                )
            mapping = Mapping(file.fileno(), self.id.size)
        self._mapping = weakref.ref(mapping)
        return mapping


class MappedRange(MappedFile):
    """Some bytes of a regular file, as if they were one: a member of an archive."""

    def __init__(self, file: MappedFile, at: int, size: int) -> None:
        super().__init__(file.path)
        self._at, self._size = at, size

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self._size

    def bytes(self) -> npt.NDArray[np.uint8]:
        """The bytes of the range, read-only."""
        return super().bytes()[self._at : self._at + self._size]


@dataclass(frozen=True)
class Folder:
    """A folder of this machine that stays."""

    name: str


class ScratchFolder:
    """A temporary folder that goes when nothing holds this any longer, without a warning.

    It has state: the folder. That of a killed process goes with the next: see `scratch_folder`.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.name = str(stack.enter_context(scratch_folder()))
            weakref.finalize(self, stack.pop_all().close)


def open_regular(path: StrPath) -> int:
    """A descriptor of the regular file `path` for reading; never waits, as a pipe would have it.

    Raises:
        CheckpointFormatError: it is a pipe, a device, or anything else that is no regular file.
    """
    fd = open_file(path, "read at once")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointFormatError(f"{os.fspath(path)} is not a regular file")
    return fd


def copy_file(source: StrPath, target: StrPath) -> None:
    """Copy the contents of a regular file in blocks; holes stay holes.

    Raises:
        CheckpointFormatError: `source` is no regular file.
        OSError: it cannot be read, or `target` not be written.
    """
    read = open_regular(source)
    try:
        with open(target, "wb", buffering=0) as file:  # noqa: PTH123
            size, at = os.fstat(read).st_size, 0
            while at < size:
                block = read_at(read, _COPY_BYTES, at)
                if not block:  # it shrank
                    break
                if block.rstrip(b"\0"):  # where holes cannot be asked for, they read as zeros
                    write_at(file.fileno(), memoryview(block), at)
                at = _next_data(read, at + len(block), size)
            file.truncate(size)
    finally:
        os.close(read)


def _next_data(fd: int, at: int, size: int) -> int:
    """The next position from `at` on that is in no hole; `size` where only a hole follows."""
    if at >= size or not hasattr(os, "SEEK_DATA"):
        return at
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else at


def stays_inside(path: StrPath, folder: StrPath) -> bool:
    """Whether `path`, links followed, is in `folder`, or where the hub's cache has its files.

    The cache keeps a model as `snapshots/<revision>/` of links into `blobs/` beside `snapshots`.
    """
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if home in real.parents:
        return True
    return home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"


def same_content(one: StrPath, other: StrPath) -> bool:
    """Whether two regular files have the same bytes; sizes first, then block by block."""
    fds = [open_regular(one), open_regular(other)]
    try:
        size = os.fstat(fds[0]).st_size
        if size != os.fstat(fds[1]).st_size:
            return False
        blocks = range(0, size, _COPY_BYTES)
        return all(
            read_at(fds[0], _COPY_BYTES, at) == read_at(fds[1], _COPY_BYTES, at) for at in blocks
        )
    finally:
        for fd in fds:
            os.close(fd)
