"""Having the kernel map the pages of a file before they are read, many at a time."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["is_mapped", "read_ahead"]

_MADV_WILLNEED = 3
_MADV_POPULATE_READ = 22  # Linux 5.14; EINVAL before


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

    With `wait`, they are mapped when it returns, in one call that lets other threads run, where
    touching them one after the other would stop for each. Without, the kernel is told to read them
    from the disk meanwhile. Where the system cannot, nothing happens: it is only faster.
    """
    advise = _madvise()
    if advise is None or array.size == 0:
        return
    address = array.__array_interface__["data"][0]
    start = address - address % mmap.PAGESIZE
    advice = _MADV_POPULATE_READ if wait else _MADV_WILLNEED
    advise(start, address + array.size - start, advice)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):  # another system
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    result: Callable[[int, int, int], int] = function
    return result
