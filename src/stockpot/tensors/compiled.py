"""Sums by compiled code, where the package was installed with a C compiler at hand.

It is loaded as a plain shared library: nothing of it depends on the version of Python. Without it
`sums.py` makes the same bits in NumPy, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stockpot.tensors.rounding import Array

_LIBRARY = Path(__file__).with_name("libsums.dll" if os.name == "nt" else "libsums.so")
_TYPES = {"BF16": 0, "F16": 1, "F32": 2}  # as `dtype` in sums.c


def available(dtype: str, out_dtype: str) -> bool:
    """Whether `mix` can make this sum."""
    return dtype in _TYPES and out_dtype in _TYPES and _function() is not None


def mix(
    blocks: Sequence[Array],
    weights: Sequence[float] | None,
    out: Array,
    *,
    dtype: str,
    out_dtype: str,
) -> bool:
    """Put Σ cᵢ·xᵢ into `out`, summed in float64 and rounded once; whether all of it is finite.

    Args:
        blocks: storage arrays of one dimension and of the length of `out`.
        weights: a number for each block; None for the mean.
        out: takes the result; contiguous.
        dtype: type of the blocks.
        out_dtype: type of the result.

    Raises:
        RuntimeError: `available` says that it cannot.
        ValueError: `out` is not contiguous, or a block has another length.
    """
    function = _function()
    if function is None or not available(dtype, out_dtype):
        raise RuntimeError(f"there is no compiled sum of {dtype} to {out_dtype}")
    if not out.flags.c_contiguous or any(block.size != out.size for block in blocks):
        raise ValueError("compiled sums want blocks of one length and a contiguous result")
    held = [np.ascontiguousarray(block) for block in blocks]
    addresses = (ctypes.c_void_p * len(held))(*(block.ctypes.data for block in held))
    factors = None if weights is None else (ctypes.c_double * len(weights))(*weights)
    finite = function(
        _TYPES[dtype], _TYPES[out_dtype], addresses, factors, len(held), out.size, out.ctypes.data
    )
    return bool(finite)


def add(
    base: Array, share: float, change: Array, out: Array, *, dtype: str, out_dtype: str
) -> bool | None:
    """Put base·share + change into `out`, rounded once; whether all of it is finite.

    None, and nothing is done, where no compiled code is there for it.

    Args:
        base: storage array of one dimension.
        share: its coefficient.
        change: float64, of the same length.
        out: takes the result; contiguous.
        dtype: type of `base`.
        out_dtype: type of the result.
    """
    function = _adding()
    if function is None or dtype not in _TYPES or out_dtype not in _TYPES:
        return None
    base, change = np.ascontiguousarray(base), np.ascontiguousarray(change, np.float64)
    if not out.flags.c_contiguous or not base.size == change.size == out.size:
        raise ValueError("compiled sums want blocks of one length and a contiguous result")
    places = (base.ctypes.data, share, change.ctypes.data, out.size, out.ctypes.data)
    return bool(function(_TYPES[dtype], _TYPES[out_dtype], *places))


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within it, a mapped file that is cut short reads as zeros and does not end the process.

    Whoever reads has to look afterwards whether the files are what they were. Without compiled code
    it does nothing. The handler of SIGBUS is the process's own again when the last block ends.
    """
    guard = _guard()
    if guard is None:
        yield
        return
    with _guards.lock:
        _guards.n += 1
        if _guards.n == 1:
            guard(1)
    try:
        yield
    finally:
        with _guards.lock:
            _guards.n -= 1
            if _guards.n == 0:
                guard(0)


class _Guards:
    """How many blocks are open; it has state because the handler is the process's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n = 0


_guards = _Guards()


@functools.cache
def _guard() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(str(_LIBRARY)).stockpot_guard
    except (OSError, AttributeError):  # not compiled, or an older one
        return None
    function.argtypes = (ctypes.c_int,)
    function.restype = ctypes.c_int
    found: Callable[[int], int] = function
    return found


@functools.cache
def _adding() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(str(_LIBRARY)).stockpot_add
    except (OSError, AttributeError):  # not compiled, or an older one
        return None
    number, place, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = (number, number, place, ctypes.c_double, place, size, place)
    function.restype = number
    found: Callable[..., int] = function
    return found


@functools.cache
def _function() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(str(_LIBRARY)).stockpot_mix
    except (OSError, AttributeError):  # not compiled, or for another machine
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    )
    function.restype = ctypes.c_int
    found: Callable[..., int] = function
    return found
