"""Temporary folders that do not stay behind, not even when the process is killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stockpot.io import locks

# Short: sockets within it have long names. No pattern of mkdtemp, which takes eight characters.
_NAME = re.compile("stockpot-[0-9a-f]{10}")
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private temporary folder, removed at the end; first, those of dead processes are.

    A killed process cannot tidy up. The next one that needs such a folder does it, for this user.
    """
    place = Path(tempfile.gettempdir())
    for entry in [entry for entry in os.scandir(place) if _NAME.fullmatch(entry.name)]:
        _remove_if_dead(Path(entry.path))
    folder, held = place / f"stockpot-{secrets.token_hex(5)}", None
    try:
        outer = locks.make(folder, folder=True, mode=0o700)
        # The folder's own lock is for outputs that are put into it: see `one_at_a_time`.
        held = locks.make(folder / _LOCK, folder=False)
        outer.release()
        yield folder
    finally:
        if held is not None:
            held.release()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(scratch: Path) -> None:
    outer = locks.take_if_dead(scratch)
    if outer is None:
        return
    lock = scratch / _LOCK
    inner = locks.take_if_dead(lock)
    # Without its lock it belongs to a process that died when it had just made it.
    dead = inner is not None or not lock.exists()
    if inner is not None:
        inner.release()
    if dead and (outer.fd < 0 or os.fstat(outer.fd).st_uid == os.getuid()):
        shutil.rmtree(scratch, ignore_errors=True)
    outer.release()
