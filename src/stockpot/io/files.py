"""Opening, reading at, writing at and flushing files, by the same calls on every system.

Where a system lacks a call there is another way to the same bytes: Windows has no reading at a
position, opens no folder, and flushes only what may be written.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Literal

from stockpot._types import StrPath

try:
    import fcntl as fcntl  # for locks.py as well
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDERS_OPEN = hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened, and so locked and flushed."""

_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
_HOW = {
    "read": os.O_RDONLY,
    # Never waits, as a pipe would have it.
    "read at once": os.O_RDONLY | getattr(os, "O_NONBLOCK", 0),
    "read no link": os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0),
    "change": os.O_RDWR,
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}
# A position and a read or write from there are two calls where they cannot be one.
_turn = threading.Lock()


def open_file(
    path: StrPath, how: Literal["read", "read at once", "read no link", "change", "create"]
) -> int:
    """A descriptor of `path` that programs started from here do not get.

    A new file has the rights that the umask leaves, as any output: not `mkstemp`'s.
    """
    return os.open(path, _HOW[how] | _ALWAYS, 0o666)


def read_at(fd: int, n_bytes: int, offset: int) -> bytes:
    """At most `n_bytes` from `offset` on; none at the end of the file."""
    if hasattr(os, "pread"):
        return os.pread(fd, n_bytes, offset)
    with _turn:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, n_bytes)


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`, of single bytes, at `offset`."""
    while len(data):
        if hasattr(os, "pwrite"):
            n = os.pwrite(fd, data, offset)
        else:
            with _turn:
                os.lseek(fd, offset, os.SEEK_SET)
                n = os.write(fd, data)
        data, offset = data[n:], offset + n


def sync(fd: int) -> None:
    """Have all that was written to `fd` on the disk when it returns."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        # macOS: its fsync leaves the data in the disk's own memory. Some file systems lack it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_path(path: StrPath) -> None:
    """Flush a file, or the entries of a folder where the system can, to the disk."""
    is_folder = os.path.isdir(path)  # noqa: PTH112
    if is_folder and not FOLDERS_OPEN:
        return
    fd = open_file(path, "read" if FOLDERS_OPEN else "change")
    try:
        sync(fd)
    except OSError:
        # Some network file systems flush no folder; what is in its files is flushed all the same.
        if not is_folder:
            raise
    finally:
        os.close(fd)
