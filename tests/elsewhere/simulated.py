"""Takes from this process what other systems do not have, so that tests meet their side here.

`STOCKPOT_TESTS_AS=windows` or `=macos`, read by `conftest.py` and, in processes of tests, by
`sitecustomize.py`. It takes calls away and makes those that remain as strict as they are there; it
cannot show another path syntax, other processors or another C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "STOCKPOT_TESTS_AS"
ABSENT = {
    "windows": (
        "pread", "pwrite", "preadv", "pwritev", "posix_fadvise", "posix_fallocate",
        "copy_file_range", "sendfile", "fork", "forkpty", "killpg", "sysconf", "O_DIRECTORY",
        "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "SEEK_DATA", "SEEK_HOLE", "mkfifo",
    ),
    "macos": ("posix_fadvise", "posix_fallocate", "copy_file_range", "SEEK_DATA", "SEEK_HOLE"),
}  # fmt: skip
_LINUX_ONLY = ("renameat2", "sync_file_range", "fallocate", "madvise")


def become(system: str) -> None:
    """Make this process look like one on `system`; for good."""
    import fcntl
    import multiprocessing.util  # noqa: F401 - before fork is gone

    if system == "windows":
        _keep_filelock()
        sys.modules["fcntl"] = sys.modules["resource"] = None  # type: ignore[assignment]
        _strict_files(fcntl)
        for name in [name for name in vars(mmap) if name.startswith("PROT_")]:
            delattr(mmap, name)
        shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    else:
        _full_fsync(fcntl)
    _no_linux_library(system)
    for name in ABSENT[system]:
        if hasattr(os, name):
            delattr(os, name)
    sys.stockpot_simulates = system  # type: ignore[attr-defined]


def _keep_filelock() -> None:
    """On Windows it has a lock that ends with its process, as its lock here; so it keeps all.

    There a lock removes its file, here the file stays; the file is removed while it is still
    locked, and who waits for it sees that it has no name any more and makes another.
    """
    import filelock

    assert filelock.FileLock is not filelock.SoftFileLock
    release = filelock.UnixFileLock._release
    remove = os.unlink

    def release_and_remove(self: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove(self.lock_file)
        release(self)

    filelock.UnixFileLock._release = release_and_remove  # type: ignore[method-assign]
    whole = types.ModuleType("os")
    whole.__dict__.update(os.__dict__)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "filelock" and getattr(module, "os", None) is os:
            module.os = whole  # type: ignore[attr-defined]


def _full_fsync(fcntl: Any) -> None:
    real, fcntl.F_FULLFSYNC = fcntl.fcntl, 51

    def call(fd: int, command: int, *rest: Any) -> Any:
        return os.fsync(fd) if command == 51 else real(fd, command, *rest)

    fcntl.fcntl = call


def _no_linux_library(system: str) -> None:
    class Library(ctypes.CDLL):
        def __init__(self, name: Any, *rest: Any, **named: Any) -> None:
            if name is None and system == "windows":
                raise TypeError("bad argument type for built-in operation")  # as Windows has it
            super().__init__(name, *rest, **named)

        def __getattr__(self, name: str) -> Any:
            if self._name is None and name in _LINUX_ONLY:
                raise AttributeError(f"symbol {name!r} not found")
            return super().__getattr__(name)

    ctypes.CDLL = Library  # type: ignore[misc]


def _strict_files(fcntl: Any) -> None:
    """No folder is opened, nothing open renamed or removed, nothing renamed onto something."""

    def refused(path: Any) -> PermissionError:
        return PermissionError(errno.EACCES, "as on Windows", str(path))

    def wrapped(name: str, check: Callable[..., None]) -> None:
        real = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            check(*given, **named)
            return real(*given, **named)

        setattr(os, name, call)

    def not_a_folder(path: Any, *rest: Any, **named: Any) -> None:
        if os.path.isdir(path):
            raise refused(path)

    def not_in_use(path: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(path, int) and "dir_fd" not in named and _in_use(os.fspath(path)):
            raise refused(path)

    def moves(source: Any, target: Any, *rest: Any, **named: Any) -> None:
        not_in_use(source)
        not_in_use(target)

    def free(source: Any, target: Any, *rest: Any, **named: Any) -> None:
        not_in_use(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "as on Windows", str(target))

    def written(fd: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "as on Windows")

    def no_links(*given: Any, follow_symlinks: bool = True, **named: Any) -> None:
        if not follow_symlinks:
            raise NotImplementedError("link: follow_symlinks unavailable on this platform")

    wrapped("open", not_a_folder)
    for name in ("unlink", "remove"):
        wrapped(name, not_in_use)
    wrapped("replace", moves)
    wrapped("rename", free)
    wrapped("fsync", written)
    wrapped("link", no_links)


def _in_use(path: str) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    if os.path.islink(path):
        return False
    real = os.path.realpath(path)
    held = [line.split(maxsplit=5)[-1].rstrip("\n") for line in _maps() if "/" in line]
    for number in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing itself, closed by now
            continue
    return any(name == real or name.startswith(real + os.sep) for name in held)


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
