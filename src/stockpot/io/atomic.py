"""Files and folders that appear whole or not at all.

Everything is first written under a temporary name in the directory of its target, flushed to the
disk, and then renamed. A process holds an `flock` on its temporary file or folder as long as it
lives, so a later process that can take the lock knows that the owner is dead and clears up: no
process ids, which are reused, and no ages, which guess.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError, OutputExistsError

_MARK = ".stockpot-"
_STAGED = ".stockpot-staged"
# Short: sockets within it have long names. No pattern of mkdtemp, which takes eight characters.
_LOCK = ".lock"
_SCRATCH = re.compile("stockpot-[0-9a-f]{10}")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def dump_json(value: object) -> bytes:
    """`value` as readable JSON with sorted keys: equal values give equal bytes.

    >>> dump_json({"b": 1, "a": [0.5]})
    b'{\\n  "a": [\\n    0.5\\n  ],\\n  "b": 1\\n}\\n'

    Raises:
        ValueError: NaN or an infinity in it, which JSON cannot say; write None instead.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def write_bytes(path: StrPath, data: bytes, *, force: bool = True) -> None:
    """Write a small file atomically; by default over an older one."""
    with staged_file(path, force=force) as staged:
        _write_all(staged.fd, data)


def write_json(path: StrPath, value: JSON, *, force: bool = True) -> None:
    """Write `value` as `dump_json` has it, atomically; by default over an older file."""
    write_bytes(path, dump_json(value), force=force)


class Staged:
    """A temporary file or folder that becomes `target` when its `with` block ends cleanly.

    It holds the open, locked descriptor that shows other processes that its owner lives.

    Attributes:
        target: the final path, symbolic links resolved.
        path: the temporary path, in the same directory.
        fd: descriptor of the temporary file (open for reading and writing) or folder.
    """

    def __init__(self, target: Path, path: Path, fd: int) -> None:
        self.target = target
        self.path = path
        self.fd = fd


@contextlib.contextmanager
def staged_file(path: StrPath, *, force: bool = False) -> Iterator[Staged]:
    """A temporary file that becomes `path` on a clean exit and vanishes on any other.

    What dead processes left for the same target is removed first. Missing parent folders are made.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
    """
    target = _prepare(path)
    refuse_existing(target, force=force, folder=False)
    # Named before it is made, so that an interruption at any point knows what to remove.
    temporary, fd = _temporary(target), -1
    try:
        with _naming(target):
            fd = _make(temporary, folder=False)
        yield Staged(target, temporary, fd)
        os.fsync(fd)
        # A rival may have finished while this one was at work.
        refuse_existing(target, force=force, folder=False)
        temporary.replace(target)
        fsync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def staged_folder(
    path: StrPath, *, force: bool = False, replaces: Callable[[str], bool] | None = None
) -> Iterator[Staged]:
    """A temporary folder that takes the place of `path` on a clean exit.

    An older folder is exchanged with it in one step where the file system can, and only then
    removed; elsewhere it is moved aside first, and `clear_stale` puts it back if the process dies
    in between. What the older one holds beside the output stays: files by a second link that is
    made before the exchange, folders by being moved after it.

    Args:
        path: the folder.
        force: put it in the place of an older one.
        replaces: whether a file of the older folder, by its relative path, goes with the older
            output. By default all that the new folder has no file of the same name for, stays.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
    """
    target = _prepare(path)
    refuse_existing(target, force=force, folder=True)
    temporary, fd = _temporary(target), -1
    old: Path | None = temporary
    try:
        with _naming(target):
            fd = _make(temporary, folder=True)
        # Shows later processes that this folder, should it be left behind, is no older output.
        (temporary / _STAGED).touch()
        yield Staged(target, temporary, fd)
        for folder, _, files in os.walk(temporary):
            for name in (*files, "."):
                fsync_path(Path(folder) / name)
        with one_at_a_time(target):
            refuse_existing(target, force=force, folder=True)
            if target.exists():
                _link_what_stays(target, temporary, "", replaces or (lambda name: False))
            old = None  # from here on, only what is known to be of no more use is removed
            old = _put_folder(temporary, target)
            if old is not None:
                _move_folders(old, target)
            (target / _STAGED).unlink(missing_ok=True)
            fsync_path(target.parent)
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        if fd >= 0:
            os.close(fd)


def _link_what_stays(old: Path, new: Path, prefix: str, replaces: Callable[[str], bool]) -> None:
    """Give every file in `old` that is not replaced a second name in `new`; links stay links."""
    for entry in os.scandir(old):
        place = new / entry.name
        if entry.is_dir(follow_symlinks=False):
            if place.is_dir():
                _link_what_stays(Path(entry.path), place, f"{prefix}{entry.name}/", replaces)
        elif not os.path.lexists(place) and not replaces(prefix + entry.name):
            try:
                os.link(entry.path, place, follow_symlinks=False)
            except OSError:  # a file system without links
                shutil.copy2(entry.path, place, follow_symlinks=False)


def _move_folders(old: Path, new: Path) -> None:
    """Move the folders in `old` that `new` does not have."""
    for entry in os.scandir(old):
        if entry.is_dir(follow_symlinks=False):
            place = new / entry.name
            if place.is_dir():
                _move_folders(Path(entry.path), place)
            elif not os.path.lexists(place):
                Path(entry.path).rename(place)


def refuse_existing(path: StrPath, *, force: bool, folder: bool) -> None:
    """Raise unless an output may be put at `path`.

    Nothing is overwritten without `force`. With it, only a file replaces a file and a folder a
    folder, and of a folder only what is written; see `staged_folder`. An empty folder is as good as
    none.

    Raises:
        OutputExistsError: with what stands in the way.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if folder and stat.S_ISDIR(mode):
        if not any(target.iterdir()):
            return
    elif folder or not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "file"
        raise OutputExistsError(
            str(path),
            f"{path} exists and is {'a ' + kind if folder or stat.S_ISDIR(mode) else 'no file'}, "
            f"and a {'folder' if folder else 'file'} would be written: choose another output",
        )
    if not force:
        raise OutputExistsError(str(path))


def require_space(directory: StrPath, n_bytes: int) -> None:
    """Raise when the file system of `directory` has less than `n_bytes` free.

    Raises:
        CheckpointError: naming both figures.
    """
    from stockpot._types import format_bytes

    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise CheckpointError(
            f"the output takes {format_bytes(n_bytes)} and {directory} has {format_bytes(free)} "
            "free: make room, choose another disk, or a smaller type with dtype= (--dtype bf16)"
        )


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private temporary folder, removed at the end; first, those of dead processes are.

    A killed process cannot tidy up. The next one that needs such a folder does it, for this user.
    """
    place = Path(tempfile.gettempdir())
    for entry in [entry for entry in os.scandir(place) if _SCRATCH.fullmatch(entry.name)]:
        _remove_if_dead(Path(entry.path))
    folder, fd = place / f"stockpot-{secrets.token_hex(5)}", -1
    try:
        outer = _make(folder, folder=True, mode=0o700)
        # The folder's own lock is for outputs that are put into it: see `one_at_a_time`.
        fd = _make(folder / _LOCK, folder=False)
        os.close(outer)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if fd >= 0:
            os.close(fd)


def _remove_if_dead(scratch: Path) -> None:
    fd = _lock_if_dead(scratch)
    if fd is None:
        return
    lock = scratch / _LOCK
    inner = _lock_if_dead(lock)
    # Without its lock it belongs to a process that died when it had just made it.
    if os.fstat(fd).st_uid == os.getuid() and (inner is not None or not lock.exists()):
        shutil.rmtree(scratch, ignore_errors=True)
    for one in (fd, inner):
        if one is not None:
            os.close(one)


def clear_stale(path: StrPath) -> None:
    """Remove what dead processes left for the target `path`, and finish what they began.

    A folder that was moved aside for an exchange which never came is put back.
    """
    target = Path(os.path.realpath(path))
    prefix = "." + _short(target.name) + _MARK
    try:
        leftovers = [entry for entry in os.scandir(target.parent) if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return
    for entry in sorted(leftovers, key=lambda entry: entry.name):
        leftover = Path(entry.path)
        fd = _lock_if_dead(leftover)
        if fd is None:
            continue
        try:
            if entry.name.endswith(".old") and not target.exists():
                leftover.rename(target)
            elif leftover.is_dir():
                if target.is_dir() and not (leftover / _STAGED).exists():
                    _move_folders(leftover, target)  # the older output, that was exchanged
                    (target / _STAGED).unlink(missing_ok=True)
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        finally:
            os.close(fd)


@contextlib.contextmanager
def one_at_a_time(target: StrPath) -> Iterator[None]:
    """Within it, no other process puts an output into the folder of `target`.

    For the moment in which finished outputs are put in place. The lock is one of the folder itself,
    so that no file is left; a file system without locks has none.
    """
    fd = os.open(Path(os.path.realpath(target)).parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: StrPath) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when missing); waits for other holders."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def fsync_path(path: StrPath) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def _short(name: str) -> str:
    """`name`, or a stand-in when a temporary name made of it would be too long for the disk."""
    if len(name.encode()) <= 200:
        return name
    return hashlib.sha256(name.encode()).hexdigest()


def _prepare(path: StrPath) -> Path:
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target)
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".{_short(target.name)}{_MARK}{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """An error of the system names what was asked for, and not its temporary name."""
    try:
        yield
    except OSError as error:
        error.filename = str(target)
        raise


def _make(path: Path, *, folder: bool, mode: int = 0o777) -> int:
    """Make the temporary `path`; its descriptor, locked."""
    while True:
        if folder:
            path.mkdir(mode)
            fd = _open_to_lock(path)
        else:
            # 0o666 and not mkstemp's 0o600: the umask decides, as for any output.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if fd is None:
            continue
        with contextlib.suppress(OSError):
            # A file system without locks works too; there leftovers are never removed.
            fcntl.flock(fd, fcntl.LOCK_EX)
        if _same(fd, path):
            return fd
        os.close(fd)  # another process cleared it up between its making and its lock


def _open_to_lock(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lock_if_dead(path: Path) -> int | None:
    """A descriptor that locks `path` when no living process holds it, else None."""
    fd = _open_to_lock(path)
    if fd is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if not _same(fd, path):
        os.close(fd)
        return None
    return fd


def _put_folder(temporary: Path, target: Path) -> Path | None:
    """Move the temporary folder to its target; where an older one is now, if there was one."""
    if not target.exists() or not any(target.iterdir()):
        temporary.rename(target)
        return None
    if _exchange(temporary, target):
        return temporary
    return _replace_in_two_steps(temporary, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace_in_two_steps(temporary: Path, target: Path) -> Path:
    aside = temporary.with_suffix(".old")
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Locked while it stands aside: only after this process's death may another put it back.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        return aside
    finally:
        os.close(fd)
