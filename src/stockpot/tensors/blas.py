"""The threads of NumPy's matrix products.

OpenBLAS, which NumPy's wheels hold, lets threads wait for each other in each product. With products
of a few milliseconds on processors that others use too, that takes several times the arithmetic.
Whoever has work for threads of their own gives each of them products of one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class _Setting(NamedTuple):
    get: Callable[[], int]
    put: Callable[[int], object]


@contextlib.contextmanager
def one_thread() -> Iterator[bool]:
    """Within it, a matrix product runs in the thread that asks for it; whether that could be had.

    It could not where NumPy has another library than the OpenBLAS of its wheels. The setting is the
    process's, and is what it was when the last block ends.
    """
    setting = _setting()
    if setting is None:
        yield False
        return
    with _blocks.lock:
        _blocks.n += 1
        if _blocks.n == 1:
            _blocks.before = setting.get()
            setting.put(1)
    try:
        yield True
    finally:
        with _blocks.lock:
            _blocks.n -= 1
            if _blocks.n == 0:
                setting.put(_blocks.before)


class _Blocks:
    """How many blocks are open; it has state because the setting is the process's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n = 0
        self.before = 1


_blocks = _Blocks()


@functools.cache
def _setting() -> _Setting | None:
    package = Path(np.__file__).parent
    places = (package.parent / "numpy.libs", package / ".dylibs", package / ".libs")
    files = [file for place in places for file in sorted(place.glob("*openblas*"))]
    for file in files:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(str(file))
            for before, after in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
                with contextlib.suppress(AttributeError):
                    return _Setting(
                        getattr(library, f"{before}openblas_get_num_threads{after}"),
                        getattr(library, f"{before}openblas_set_num_threads{after}"),
                    )
    return None
