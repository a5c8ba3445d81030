"""Memory of this process and this machine, and pages of mapped files."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.io import kernel
from stockpot.io.storage import Mapping


def anonymous_bytes() -> int:
    """Anonymous memory of this process in bytes: what it allocated, without mapped files.

    0 where the system does not say (it is read from Linux's /proc).
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def fits_in_memory(n_bytes: int) -> bool:
    """Whether `n_bytes` of files stay in the page cache: less than half of the machine's memory.

    A machine that does not say how much it has (Windows) counts as a small one, of 4 GiB.
    """
    memory = 4 << 30
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return n_bytes < memory // 2


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether `array` is a piece of a mapped file, and not memory of its own."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, Mapping)


def read_ahead(array: npt.NDArray[np.uint8], *, wait: bool) -> None:
    """Bring in the pages of `array`, a piece of a mapped file.

    With `wait`, they are mapped when it returns. Without, the kernel is told to read them from the
    disk meanwhile. Where the system cannot, nothing happens: it is only faster.
    """
    if array.size == 0:
        return
    address = array.__array_interface__["data"][0]
    start = address - address % mmap.PAGESIZE
    bring = kernel.populate if wait else kernel.prefetch
    bring(start, address + array.size - start)
