"""Files and folders that appear whole or not at all.

Everything is first written under a temporary name in the directory of its target, flushed to the
disk, and then renamed. A process holds a lock on its temporary file or folder as long as it lives,
so a later process that can take the lock knows that the owner is dead and clears up: no process
ids, which are reused, and no ages, which guess.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.io import locks, uploads
from stockpot.io.files import sync, sync_path
from stockpot.io.objects import is_remote

_MARK = ".stockpot-"
_STAGED = ".stockpot-staged"
_HALVES = re.compile("[\ud800-\udfff]")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds between attempts to rename what somebody has open."""


def dump_json(value: object) -> bytes:
    """`value` as readable JSON with sorted keys: equal values give equal bytes.

    >>> dump_json({"b": 1, "a": [0.5]})
    b'{\\n  "a": [\\n    0.5\\n  ],\\n  "b": 1\\n}\\n'

    A byte of a file name that is no UTF-8 is written out, as `\\xff`.

    Raises:
        ValueError: NaN or an infinity in it, which JSON cannot say; write None instead.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    text = _HALVES.sub(lambda half: f"\\\\x{ord(half[0]) & 0xFF:02x}", text)
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

    Attributes:
        target: the final path, symbolic links resolved.
        path: the temporary path, in the same directory.
        fd: descriptor of the temporary file, open for reading and writing; nothing of a folder.
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
    temporary, held = _temporary(target), None
    try:
        with _naming(target):
            held = locks.make(temporary, folder=False)
        yield Staged(target, temporary, held.fd)
        sync(held.fd)
        # A rival may have finished while this one was at work.
        refuse_existing(target, force=force, folder=False)
        held.before_rename()
        with _naming(target):
            _patiently(temporary.replace, target)
        sync_path(target.parent)
    finally:
        if held is not None:
            held.before_rename()
        temporary.unlink(missing_ok=True)
        if held is not None:
            held.release()


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
    temporary, held = _temporary(target), None
    old: Path | None = temporary
    try:
        with _naming(target):
            held = locks.make(temporary, folder=True)
        # Shows later processes that this folder, should it be left behind, is no older output.
        (temporary / _STAGED).touch()
        yield Staged(target, temporary, held.fd)
        for folder, _, files in os.walk(temporary):
            for name in (*files, "."):
                sync_path(Path(folder) / name)
        with one_at_a_time(target):
            refuse_existing(target, force=force, folder=True)
            if target.exists():
                _link_what_stays(target, temporary, "", replaces or (lambda name: False))
                # It is complete: whoever put it there was stopped before it took the mark away,
                # with which it would be taken for an unfinished one as soon as it is aside.
                (target / _STAGED).unlink(missing_ok=True)
            old = None  # from here on, only what is known to be of no more use is removed
            old = _put_folder(temporary, target)
            if old is not None:
                _move_folders(old, target)
            (target / _STAGED).unlink(missing_ok=True)
            sync_path(target.parent)
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        if held is not None:
            held.release()


def _link_what_stays(old: Path, new: Path, prefix: str, replaces: Callable[[str], bool]) -> None:
    """Give every file in `old` that is not replaced a second name in `new`; links stay links."""
    for entry in _entries(old):
        place = new / entry.name
        if entry.is_dir(follow_symlinks=False):
            if place.is_dir():
                _link_what_stays(Path(entry.path), place, f"{prefix}{entry.name}/", replaces)
        elif not os.path.lexists(place) and not replaces(prefix + entry.name):
            try:
                os.link(entry.path, place, follow_symlinks=False)
            except (OSError, NotImplementedError):  # a file system or a system without links
                shutil.copy2(entry.path, place, follow_symlinks=False)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in it; listed at once, because an open listing keeps Windows from moving it."""
    with os.scandir(folder) as entries:
        return list(entries)


def _move_folders(old: Path, new: Path) -> None:
    """Move the folders in `old` that `new` does not have.

    The process that made an exchange and one that finds its leftover may both be at it: what is
    gone, the other has moved.
    """
    try:
        entries = _entries(old)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            place = new / entry.name
            if place.is_dir():
                _move_folders(Path(entry.path), place)
            elif not os.path.lexists(place):
                with contextlib.suppress(FileNotFoundError):
                    Path(entry.path).rename(place)


def refuse_existing(path: StrPath, *, force: bool, folder: bool) -> None:
    """Raise unless an output may be put at `path`.

    Nothing is overwritten without `force`. With it, only a file replaces a file and a folder a
    folder, and of a folder only what is written; see `staged_folder`. An empty folder is as good as
    none.

    Raises:
        OutputExistsError: with what stands in the way.
    """
    if is_remote(os.fspath(path)):
        uploads.refuse_existing(os.fspath(path), force=force, folder=folder)
        return
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

    One without a size, such as that of `/proc`, is left to the system's own message.

    Raises:
        CheckpointError: naming both figures.
    """
    from stockpot._types import format_bytes

    usage = shutil.disk_usage(directory)
    free = usage.free
    if usage.total and free < n_bytes:
        raise CheckpointError(
            f"the output takes {format_bytes(n_bytes)} and {directory} has {format_bytes(free)} "
            "free: make room, choose another disk, or a smaller type with dtype= (--dtype bf16)"
        )


def clear_stale(path: StrPath) -> None:
    """Remove what dead processes left for the target `path`, and finish what they began.

    A folder that was moved aside for an exchange which never came is put back.
    """
    target = Path(os.path.realpath(path))
    prefix = "." + _short(target.name) + _MARK
    try:
        leftovers = [entry for entry in _entries(target.parent) if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return
    for entry in sorted(leftovers, key=lambda entry: entry.name):
        leftover = Path(entry.path)
        held = locks.take_if_dead(leftover)
        if held is None:
            continue
        try:
            if entry.name.endswith(".old") and _put_back(leftover, target):
                pass
            elif leftover.is_dir():
                if target.is_dir() and not (leftover / _STAGED).exists():
                    _move_folders(leftover, target)  # the older output, that was exchanged
                    (target / _STAGED).unlink(missing_ok=True)
                shutil.rmtree(leftover, ignore_errors=True)
            elif leftover.suffix != ".lock":  # that one goes with the lock
                leftover.unlink(missing_ok=True)
        finally:
            held.release()


def _put_back(aside: Path, target: Path) -> bool:
    """Undo half an exchange, unless another process is in the middle of one."""
    if target.exists():
        return False
    with one_at_a_time(target):
        if target.exists():
            return False
        aside.rename(target)
        return True


@contextlib.contextmanager
def one_at_a_time(target: StrPath) -> Iterator[None]:
    """Within it, no other process puts an output into the folder of `target`.

    For the moment in which finished outputs are put in place.
    """
    with locks.holding_folder(Path(os.path.realpath(target)).parent):
        yield


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def _short(name: str) -> str:
    """`name`, or a stand-in when a temporary name made of it would be too long for the disk."""
    if len(os.fsencode(name)) <= 200:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()


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


def _put_folder(temporary: Path, target: Path) -> Path | None:
    """Move the temporary folder to its target; where an older one is now, if there was one."""
    if not target.exists() or not any(target.iterdir()):
        _rename_onto_nothing(temporary, target)
        return None
    if _exchange(temporary, target):
        return temporary
    return _replace_in_two_steps(temporary, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError):  # another system than Linux; Windows names no library None
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _rename_onto_nothing(folder: Path, target: Path) -> None:
    """Rename to a name that is free or an empty folder's."""
    try:
        _patiently(folder.rename, target)
    except FileExistsError:  # Windows: an empty folder is in the way as any other
        target.rmdir()
        _patiently(folder.rename, target)


def _patiently(rename: Callable[[Path], object], target: Path) -> None:
    """Rename, and wait a little for who is looking at either just now.

    Windows renames nothing that is open: another run asks whether the output exists, a scanner
    reads what was written. Elsewhere a refusal is final.
    """
    for wait in () if locks.ITSELF else _WAITS:
        try:
            rename(target)
        except PermissionError:
            time.sleep(wait)
        else:
            return
    rename(target)


def _replace_in_two_steps(temporary: Path, target: Path) -> Path:
    aside = temporary.with_suffix(".old")
    # Held while it stands aside: only after this process's death may another put it back.
    # Whoever put the older folder there has yet to let go of it, for a moment.
    held = locks.take_if_dead(target, wait=True) if locks.ITSELF else None
    try:
        with _naming(target):
            _patiently(target.rename, aside)
        try:
            _patiently(temporary.rename, target)
        except BaseException:
            _patiently(aside.rename, target)
            raise
        return aside
    finally:
        if held is not None:
            held.release()
