"""Locks that end with the process that holds them, whatever ends it.

POSIX systems lock the file or folder itself, and no file is left. Windows opens no folder and
renames no file that is open, so there the lock is one of a file beside it (by filelock, which
removes the file as it lets go, unless somebody waits for it). Which one it is shows nowhere outside
of this module.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot.io.files import FOLDERS_OPEN, fcntl, open_file

if TYPE_CHECKING:
    from filelock import BaseFileLock

ITSELF = hasattr(fcntl, "flock") and FOLDERS_OPEN
"""Whether files and folders are locked themselves, and not by a file beside them."""


class Held:
    """A temporary file or folder that this process holds: others see that its owner lives.

    It has state because it is an open file and a lock, which end at different moments.

    Attributes:
        fd: descriptor of the file, for reading and writing; of a folder where folders can be
            opened, else -1.
    """

    def __init__(self, fd: int, beside: BaseFileLock | None) -> None:
        self.fd = fd
        self._beside = beside

    def before_rename(self) -> None:
        """Close the file where an open one can be neither renamed nor removed."""
        if not ITSELF:
            self._close()

    def release(self) -> None:
        """End it; more than once does nothing."""
        self._close()
        if self._beside is not None:
            self._beside.release()
            self._beside = None

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def make(path: Path, *, folder: bool, mode: int = 0o777) -> Held:
    """Make the temporary `path` and hold it; `mode` is for folders.

    Raises:
        OSError: it cannot be made.
    """
    if not ITSELF:
        beside = _file_lock(_beside(path))
        with contextlib.suppress(OSError):  # its name is new: nobody is waited for
            beside.acquire(timeout=1)
        held = Held(-1, beside)
        try:
            if folder:
                path.mkdir(mode)
            else:
                held.fd = open_file(path, "create")
        except BaseException:
            held.release()
            raise
        return held
    while True:
        if folder:
            path.mkdir(mode)
        fd = _open(path) if folder else open_file(path, "create")
        if fd is None:
            continue
        with contextlib.suppress(OSError):
            # A file system without locks works too; there leftovers are never removed.
            fcntl.flock(fd, fcntl.LOCK_EX)
        if _same(fd, path):
            return Held(fd, None)
        os.close(fd)  # another process cleared it up between its making and its lock


def take_if_dead(path: Path, *, wait: bool = False) -> Held | None:
    """Hold `path`, a temporary file or folder that was found, unless a living process does.

    With `wait`, until that one lets go: where the path itself is locked.
    """
    if not ITSELF:
        beside = _file_lock(_beside(path))
        try:
            beside.acquire(timeout=0)
        except (OSError, RuntimeError):  # held, by another or by this process
            return None
        return Held(-1, beside)
    fd = _open(path)
    if fd is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if not _same(fd, path):
        os.close(fd)
        return None
    return Held(fd, None)


@contextlib.contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` within the block; waits for whoever holds it.

    A file system without locks has none, and nothing is waited for.
    """
    if not ITSELF:
        beside = _file_lock(folder / ".stockpot.lock")
        with contextlib.suppress(OSError):  # held for moments; where it cannot be had, go on
            beside.acquire(timeout=30)
        try:
            yield
        finally:
            beside.release()
        return
    fd = open_file(folder, "read")
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int | None:
    try:
        return open_file(path, "read no link")
    except OSError:
        return None


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _beside(path: Path) -> Path:
    """One lock for a folder under its temporary name and moved aside (`.tmp`, `.old`)."""
    return path.with_suffix(".lock")


def _file_lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(path, thread_local=False)
