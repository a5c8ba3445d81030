"""Having the kernel map the pages of a file before they are read, many at a time."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.io import kernel as _kernel


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether `array` is a piece of a mapped file, and not memory of its own."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return isinstance(base, mmap.mmap)


def read_ahead(array: npt.NDArray[np.uint8], *, wait: bool) -> None:
    """Bring in the pages of `array`, a piece of a mapped file.

    With `wait`, they are mapped when it returns. Without, the kernel is told to read them from the
    disk meanwhile. Where the system cannot, nothing happens: it is only faster.
    """
    if array.size == 0:
        return
    address = array.__array_interface__["data"][0]
    start = address - address % mmap.PAGESIZE
    bring = _kernel.map_pages if wait else _kernel.read_soon
    bring(start, address + array.size - start)
