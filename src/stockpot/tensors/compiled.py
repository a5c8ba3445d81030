"""Sums and changes by compiled code, where the package was installed with a C compiler at hand.

It is loaded as a plain shared library: nothing of it depends on the version of Python. Without it
`sums.py` and `changes.py` make the same bits in NumPy, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.tensors.rounding import Array
from stockpot.tensors.trim import Stored, Trim

_F64 = npt.NDArray[np.float64]

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


def change(value: Stored, base: Stored, trim: Trim, factor: float, out: _F64) -> bool | None:
    """See `changes.change`: whether all of `out` is finite; None where it cannot be compiled."""
    function = _changing()
    pair = None if function is None else _pair(value, base)
    if function is None or pair is None:
        return None
    types, held, n = pair
    kept = None if trim.kept is None else np.ascontiguousarray(trim.kept)
    each = np.ascontiguousarray(trim.share, np.float64) if np.ndim(trim.share) else None
    if out.size != n or any(one is not None and one.size != n for one in (kept, each)):
        raise ValueError("compiled changes want blocks of one length")
    return bool(
        function(
            *types, *_addresses(held), n, trim.least, trim.most, *_addresses([kept, each]),
            1.0 if each is not None else float(trim.share), factor, out.ctypes.data,
        )
    )  # fmt: skip


def elected(
    terms: Sequence[_F64], weights: Sequence[float], tie: int, out: _F64, *,
    normalise: bool, weigh: bool,
) -> bool | None:  # fmt: skip
    """See `changes.elected`: False where terms cancel out and no tie is given."""
    function = _electing()
    if function is None:
        return None
    addresses, held = _terms(terms, out)
    if len(held) != len(weights):
        raise ValueError("compiled sums want a weight for each block")
    shares = (ctypes.c_double * len(held))(*weights)
    sizes = (len(held), out.size)
    return bool(function(addresses, shares, weigh, *sizes, tie, normalise, out.ctypes.data))


def variance(terms: Sequence[_F64], out: _F64) -> bool:
    """See `changes.variance`: whether it was made."""
    function = _varying()
    if function is None:
        return False
    addresses, held = _terms(terms, out)
    function(addresses, len(held), out.size, out.ctypes.data)
    return True


def _terms(terms: Sequence[_F64], out: _F64) -> tuple[Any, list[_F64]]:
    """The addresses of terms as long as `out`, and what has to be held meanwhile."""
    held = [np.ascontiguousarray(term, np.float64) for term in terms]
    if any(term.size != out.size for term in held):
        raise ValueError("compiled sums want blocks of one length")
    return (ctypes.c_void_p * len(held))(*_addresses(held)), held


def count_sizes(
    value: Stored, base: Stored, prefix: int, shift: int
) -> npt.NDArray[np.int64] | None:
    """See `changes.count_sizes`."""
    function = _counting()
    pair = None if function is None else _pair(value, base)
    if function is None or pair is None:
        return None
    types, held, n = pair
    counts = np.zeros((2, 1 << 16), np.int64)
    function(*types, *_addresses(held), n, shift, prefix, counts.ctypes.data)
    total: npt.NDArray[np.int64] = counts[0] + counts[1]
    return total


def sizes(value: Stored, base: Stored, prefix: int, shift: int) -> npt.NDArray[np.uint64] | None:
    """See `changes.sizes`."""
    function = _sizing()
    pair = None if function is None else _pair(value, base)
    if function is None or pair is None:
        return None
    types, held, n = pair
    out = np.empty(n, np.uint64)
    found = function(*types, *_addresses(held), n, shift, prefix, out.ctypes.data)
    return out[:found]


def l1_norms(value: Stored, base: Stored, trim: Trim) -> _F64 | None:
    """See `changes.l1_norms`: (2,)."""
    function = _norming()
    pair = None if function is None else _pair(value, base)
    if function is None or pair is None:
        return None
    types, held, n = pair
    kept = None if trim.kept is None else np.ascontiguousarray(trim.kept)
    if kept is not None and kept.size != n:
        raise ValueError("compiled changes want blocks of one length")
    out = np.empty(2)
    bounds = (trim.least, trim.most, *_addresses([kept]))
    function(*types, *_addresses(held), n, *bounds, out.ctypes.data)
    return out


def ranks(value: Stored, base: Stored, width: int) -> _F64 | None:
    """See `changes.ranks`; None, too, where there is no memory for it."""
    function = _ranking()
    pair = None if function is None else _pair(value, base)
    if function is None or pair is None:
        return None
    types, held, n = pair
    out = np.empty(n)
    done = function(*types, *_addresses(held), n // width, width, out.ctypes.data)
    return out.reshape(-1, width) if done else None


def kept_at_random(
    key: tuple[int, int], start: int, n: int, share: float | _F64
) -> npt.NDArray[np.bool_] | None:
    """Whether the 32-bit numbers of the items `start` to `start + n` are below 2³² · `share`.

    The numbers are the halves of the words of Philox4x64, keyed by `key`, lower halves first.
    """
    function = _drawing()
    if function is None:
        return None
    each = np.ascontiguousarray(share, np.float64) if np.ndim(share) else None
    if each is not None and each.size != n:
        raise ValueError("compiled draws want one share for each item")
    out = np.empty(n, np.bool_)
    one = 0.0 if each is not None else float(share)
    function(*key, start, n, one, *_addresses([each]), out.ctypes.data)
    return out


def gram(blocks: Sequence[Stored], origin: Stored | None) -> _F64 | None:
    """See `changes.gram`."""
    function = _multiplying()
    every = [*blocks, *([] if origin is None else [origin])]
    if function is None or any(one.dtype not in _TYPES for one in every):
        return None
    held = [np.ascontiguousarray(one.block) for one in every]
    k, n = len(blocks), held[0].size
    if any(block.size != n for block in held):
        raise ValueError("compiled products want blocks of one length")
    types = (ctypes.c_int * k)(*(_TYPES[one.dtype] for one in blocks))
    addresses = (ctypes.c_void_p * k)(*_addresses(held[:k]))
    start = (0, None) if origin is None else (_TYPES[origin.dtype], held[k].ctypes.data)
    out = np.empty(k * (k + 512))
    function(types, addresses, k, *start, n, out.ctypes.data)
    return out[: k * k].reshape(k, k).copy()


def mix_centred(
    blocks: Sequence[Stored], weights: Sequence[float], total: float, out: Array
) -> bool:
    """See `centred.mix`: whether it was made."""
    function = _mixing_centred()
    every = None if function is None else _singles(blocks, out)
    if function is None or every is None:
        return False
    types, addresses, _held = every
    factors = (ctypes.c_float * len(blocks))(*weights)
    function(types, addresses, factors, len(blocks), total, out.size, out.ctypes.data)
    return True


def dot_centred(blocks: Sequence[Stored], vector: Array) -> _F64 | None:
    """See `centred.dot`."""
    function = _multiplying_centred()
    every = None if function is None else _singles(blocks, vector)
    if function is None or every is None:
        return None
    types, addresses, _held = every
    out = np.empty(len(blocks))
    sizes = (vector.size, out.ctypes.data)
    function(types, addresses, len(blocks), vector.ctypes.data, *sizes)
    return out


def _singles(blocks: Sequence[Stored], beside: Array) -> tuple[Any, Any, list[Array]] | None:
    """Types and addresses of blocks, and what has to be held meanwhile; None where one of them, or
    `beside`, has no type for compiled sums in float32."""
    if beside.dtype != np.float32 or not beside.flags.c_contiguous:
        return None
    if any(one.dtype not in _TYPES for one in blocks):
        return None
    held = [np.ascontiguousarray(one.block) for one in blocks]
    if any(block.size != beside.size for block in held):
        raise ValueError("compiled sums want blocks of one length")
    types = (ctypes.c_int * len(held))(*(_TYPES[one.dtype] for one in blocks))
    return types, (ctypes.c_void_p * len(held))(*_addresses(held)), held


def _pair(value: Stored, base: Stored) -> tuple[list[int], list[Array], int] | None:
    """Types and contiguous blocks of a change; None where a type is none of the compiled ones."""
    if value.dtype not in _TYPES or base.dtype not in _TYPES:
        return None
    held = [np.ascontiguousarray(one.block) for one in (value, base)]
    if held[0].size != held[1].size:
        raise ValueError("compiled changes want blocks of one length")
    return [_TYPES[value.dtype], _TYPES[base.dtype]], held, held[0].size


def _addresses(blocks: Sequence[Array | None]) -> list[int | None]:
    return [None if block is None else block.ctypes.data for block in blocks]


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
    return _loaded("stockpot_guard", "i")


@functools.cache
def _adding() -> Callable[..., int] | None:
    return _loaded("stockpot_add", "iipdpnp")


@functools.cache
def _changing() -> Callable[..., int] | None:
    return _loaded("stockpot_change", "iippnddppddp")


@functools.cache
def _electing() -> Callable[..., int] | None:
    return _loaded("stockpot_elect", "ppinniip")


@functools.cache
def _varying() -> Callable[..., int] | None:
    return _loaded("stockpot_variance", "pnnp")


@functools.cache
def _counting() -> Callable[..., int] | None:
    return _loaded("stockpot_count_sizes", "iippniqp")


@functools.cache
def _sizing() -> Callable[..., int] | None:
    return _loaded("stockpot_sizes", "iippniqp", "n")


@functools.cache
def _norming() -> Callable[..., int] | None:
    return _loaded("stockpot_l1_norms", "iippnddpp")


@functools.cache
def _ranking() -> Callable[..., int] | None:
    return _loaded("stockpot_ranks", "iippnnp")


@functools.cache
def _multiplying() -> Callable[..., int] | None:
    return _loaded("stockpot_gram", "ppnipnp")


@functools.cache
def _mixing_centred() -> Callable[..., int] | None:
    return _loaded("stockpot_mix_centred", "pppnfnp")


@functools.cache
def _multiplying_centred() -> Callable[..., int] | None:
    return _loaded("stockpot_dot_centred", "ppnpnp")


@functools.cache
def _drawing() -> Callable[..., int] | None:
    return _loaded("stockpot_kept", "qqqndpp")


@functools.cache
def _function() -> Callable[..., int] | None:
    return _loaded("stockpot_mix", "iippnnp")


_ARGUMENTS: dict[str, Any] = {
    "i": ctypes.c_int, "p": ctypes.c_void_p, "d": ctypes.c_double, "n": ctypes.c_size_t,
    "q": ctypes.c_uint64, "f": ctypes.c_float,
}  # fmt: skip


@functools.cache
def _loaded(name: str, arguments: str, result: str = "i") -> Callable[..., int] | None:
    """A function of the library, by the letters of its arguments; None where it is not there."""
    try:
        function = ctypes.CDLL(str(_LIBRARY))[name]
    except (OSError, AttributeError):  # not compiled, for another machine, or an older one
        return None
    function.argtypes = [_ARGUMENTS[letter] for letter in arguments]
    function.restype = _ARGUMENTS[result]
    found: Callable[..., int] = function
    return found
