"""Calls of Linux and its C library that Python does not offer; nothing happens where they lack.

All of them only make things faster or fail earlier: what is read and written is the same without.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable

_MADV_WILLNEED = 3
_MADV_POPULATE_READ = 22  # Linux 5.14; EINVAL before
_SYNC_FILE_RANGE_WRITE = 2
_TMPFS = 0x01021994
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def populate(address: int, n_bytes: int) -> None:
    """Map the pages of mapped memory, in one call that lets other threads run.

    Touching them one after the other would stop for each.
    """
    _call("madvise", address, n_bytes, _MADV_POPULATE_READ)


def prefetch(address: int, n_bytes: int) -> None:
    """Have the disk read the pages of mapped memory, without waiting for it."""
    _call("madvise", address, n_bytes, _MADV_WILLNEED)


def flush_async(fd: int, offset: int, n_bytes: int) -> None:
    """Have the disk write a range of a file, without waiting: an fsync then finds little left."""
    _call("sync_file_range", fd, offset, n_bytes, _SYNC_FILE_RANGE_WRITE)


def reserve(fd: int, n_bytes: int) -> None:
    """Make a file `n_bytes` long, with its room on the disk where the file system can promise it.

    Raises:
        OSError: the disk is full.
    """
    os.ftruncate(fd, n_bytes)
    # Not posix_fallocate: where the file system cannot, the C library would write every block.
    # And not in memory, where room is made by filling it with zeros, all of them once too often.
    if n_bytes and not _in_memory(fd) and _call("fallocate", fd, 0, 0, n_bytes) == errno.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def keep_freed_memory() -> None:
    """Have this process keep up to 1 GiB that it frees for what it allocates next.

    glibc gives blocks of 32 MiB and more back at once. The activations of a network are such
    blocks, and clearing their pages anew for every batch takes more than half of the time of a
    convolutional network on a processor. What the user says in the environment stays.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        _call("mallopt", _M_MMAP_THRESHOLD, 1 << 30)
        _call("mallopt", _M_TRIM_THRESHOLD, 1 << 30)


def _in_memory(fd: int) -> bool:
    """Whether a file is on a tmpfs."""
    found = (ctypes.c_long * 32)()  # a struct statfs, whose first field is the type, and room
    return _call("fstatfs", fd, ctypes.addressof(found)) == 0 and found[0] == _TMPFS


def _call(name: str, *arguments: int) -> int:
    """Call it; 0, or the number of its error."""
    function = _function(name)
    if function is None:
        return errno.ENOSYS
    return 0 if function(*arguments) == 0 else ctypes.get_errno()


_TYPES = {
    "madvise": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    "fallocate": (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    "fstatfs": (ctypes.c_int, ctypes.c_void_p),
    "mallopt": (ctypes.c_int, ctypes.c_int),
    "sync_file_range": (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint),
}


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):  # another system
        return None
    function.argtypes = _TYPES[name]
    function.restype = ctypes.c_int
    found: Callable[..., int] = function
    return found
