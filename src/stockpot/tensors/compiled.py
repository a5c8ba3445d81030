"""Sums and changes by compiled code, where the package was installed with a C compiler at hand.

It is loaded as a plain shared library: nothing of it depends on the version of Python. Without it
`sums.py` and `changes.py` make the same bits in NumPy, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from stockpot.tensors.rounding import Array
from stockpot.tensors.trim import Merging, Stored, Term, Trim

_F64 = npt.NDArray[np.float64]
_Numbers = tuple[float, float, float, float]

_LIBRARY = Path(__file__).with_name("libsums.dll" if os.name == "nt" else "libsums.so")
_TYPES = {"BF16": 0, "F16": 1, "F32": 2}  # as `dtype` in sums.c


def available(dtype: str, out_dtype: str) -> bool:
    """Whether `mix` can make this sum."""
    return dtype in _TYPES and out_dtype in _TYPES and _loaded("mix") is not None


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
    function = _loaded("mix")
    if function is None or not available(dtype, out_dtype):
        raise RuntimeError(f"there is no compiled sum of {dtype} to {out_dtype}")
    if not out.flags.c_contiguous or any(block.size != out.size for block in blocks):
        raise ValueError("compiled sums want blocks of one length and a contiguous result")
    held = [np.ascontiguousarray(block) for block in blocks]
    factors = None if weights is None else (ctypes.c_double * len(weights))(*weights)
    types, sizes = (_TYPES[dtype], _TYPES[out_dtype]), (len(held), out.size)
    return bool(function(*types, _addresses(held), factors, *sizes, out.ctypes.data))


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
    function = _loaded("add")
    if function is None or dtype not in _TYPES or out_dtype not in _TYPES:
        return None
    base, change = np.ascontiguousarray(base), np.ascontiguousarray(change, np.float64)
    if not out.flags.c_contiguous or not base.size == change.size == out.size:
        raise ValueError("compiled sums want blocks of one length and a contiguous result")
    places = (base.ctypes.data, share, change.ctypes.data, out.size, out.ctypes.data)
    return bool(function(_TYPES[dtype], _TYPES[out_dtype], *places))


def change(value: Stored, base: Stored, trim: Trim, factor: float, out: _F64) -> bool | None:
    """See `changes.change`: whether all of `out` is finite; None where it cannot be compiled."""
    pair = _of_pair("trim", value, base)
    if pair is None:
        return None
    function, n = pair
    numbers, kept, shares = _trim(trim, factor, n)
    if out.size != n:
        raise ValueError("compiled changes want blocks of one length")
    places = [_address(one) for one in (kept, shares, out)]
    return bool(function((ctypes.c_double * 4)(*numbers), *places))


def merge(terms: Sequence[Term], base: Stored, how: Merging, tie: int, out: Stored) -> bool | None:
    """See `changes.merge`: whether all of it is finite; None where it cannot be compiled.

    Raises:
        Undecided: terms cancel out, and `tie` is 0.
    """
    function = _loaded("merge")
    many = None if function is None else _many([*(one.value for one in terms), base])
    if function is None or many is None or out.dtype not in _TYPES:
        return None
    types, addresses, n, _held = many
    k, trims = len(terms), [_trim(one.trim, one.factor, n) for one in terms]
    if out.block.size != n or not out.block.flags.c_contiguous or len(how.weights) != k:
        raise ValueError("compiled merges want a weight for each block, and a contiguous result")
    rows = [(*row, weight) for (row, _, _), weight in zip(trims, how.weights, strict=True)]
    numbers = (ctypes.c_double * (5 * k))(*itertools.chain(*rows))
    places = (_addresses([kept for _, kept, _ in trims]), _addresses([own for *_, own in trims]))
    found = function(
        types, addresses, k, n, numbers, *places, ctypes.byref(_Merging.of(how, tie)),
        _TYPES[out.dtype], out.block.ctypes.data,
    )  # fmt: skip
    if found == _UNDECIDED:
        raise Undecided
    return bool(found) if found >= 0 else None


class Undecided(Exception):  # noqa: N818 — a question, which the caller answers
    """Terms cancel out, and it was not said which sign they have."""


_UNDECIDED = 2


class _Merging(ctypes.Structure):
    """`merging` of sums.c."""

    _fields_: ClassVar = [
        *((name, ctypes.c_double) for name in ("divisor", "scale", "least")),
        *((name, ctypes.c_int) for name in ("elect", "tie", "normalise", "weigh", "select")),
    ]

    @classmethod
    def of(cls, how: Merging, tie: int) -> _Merging:
        """From the Python description, and the sign of ties."""
        least = 0.0 if how.least_variance is None else how.least_variance
        flags = (how.elect, tie, how.normalise, how.weigh, how.least_variance is not None)
        return cls(how.divisor, how.scale, least, *flags)


def variances(values: Sequence[Stored], base: Stored) -> _F64 | None:
    """See `changes.variances`."""
    function = _loaded("variances")
    many = None if function is None else _many([*values, base])
    if function is None or many is None:
        return None
    types, addresses, n, _held = many
    out = np.empty(n)
    return out if function(types, addresses, len(values), n, out.ctypes.data) else None


def squares(values: Sequence[Stored], base: Stored, least: float) -> _F64 | None:
    """See `changes.squares`."""
    function = _loaded("squares")
    many = None if function is None else _many([*values, base])
    if function is None or many is None:
        return None
    types, addresses, n, _held = many
    out = np.empty((len(values), n))
    found = function(types, addresses, len(values), n, least, out.ctypes.data)
    return out[:, :found] if found <= n else None


def count_sizes(
    value: Stored, base: Stored, prefix: int, shift: int
) -> npt.NDArray[np.int64] | None:
    """See `changes.count_sizes`."""
    pair = _of_pair("count_sizes", value, base)
    return None if pair is None else _counted(pair[0], prefix, shift)


def count(numbers: _F64, prefix: int, shift: int) -> npt.NDArray[np.int64] | None:
    """See `changes.count_digits`."""
    function = _loaded("count")
    if function is None:
        return None
    held = np.ascontiguousarray(numbers)
    return _counted(functools.partial(function, held.ctypes.data, held.size), prefix, shift)


def _counted(
    function: Callable[[int, int, int], int], prefix: int, shift: int
) -> npt.NDArray[np.int64]:
    counts = np.zeros((2, 1 << 16), np.int64)
    function(shift, prefix, counts.ctypes.data)
    total: npt.NDArray[np.int64] = counts[0] + counts[1]
    return total


def sizes(value: Stored, base: Stored, prefix: int, shift: int) -> npt.NDArray[np.uint64] | None:
    """See `changes.sizes`."""
    pair = _of_pair("sizes", value, base)
    if pair is None:
        return None
    function, n = pair
    out = np.empty(n, np.uint64)
    found = function(shift, prefix, out.ctypes.data)
    return out[:found].copy()  # and not all of the memory that it might have taken


def pick(numbers: _F64, prefix: int, shift: int) -> npt.NDArray[np.uint64] | None:
    """See `changes.beginning_with`."""
    function = _loaded("pick")
    if function is None:
        return None
    held = np.ascontiguousarray(numbers)
    out = np.empty(held.size, np.uint64)
    found = function(held.ctypes.data, held.size, shift, prefix, out.ctypes.data)
    return out[:found].copy()


def l1_norms(value: Stored, base: Stored, trim: Trim) -> _F64 | None:
    """See `changes.l1_norms`: (2,)."""
    pair = _of_pair("l1_norms", value, base)
    if pair is None:
        return None
    function, n = pair
    _, kept, _ = _trim(trim, 1.0, n)
    out = np.empty(2)
    function(trim.least, trim.most, _address(kept), out.ctypes.data)
    return out


def by_rank(value: Stored, base: Stored, values: _F64) -> _F64 | None:
    """See `changes.by_rank`; None, too, where there is no memory for it."""
    pair = _of_pair("by_rank", value, base)
    if pair is None:
        return None
    function, n = pair
    held, out = np.ascontiguousarray(values, np.float64), np.empty(n)
    done = function(held.size, held.ctypes.data, out.ctypes.data)
    return out.reshape(-1, held.size) if done else None


def kept_at_random(
    key: tuple[int, int], start: int, n: int, share: float | _F64
) -> npt.NDArray[np.bool_] | None:
    """Whether the 32-bit numbers of the items `start` to `start + n` are below 2³² · `share`.

    The numbers are the halves of the words of Philox4x64, keyed by `key`, lower halves first.
    """
    function = _loaded("kept")
    if function is None:
        return None
    each = np.ascontiguousarray(share, np.float64) if np.ndim(share) else None
    if each is not None and each.size != n:
        raise ValueError("compiled draws want one share for each item")
    out = np.empty(n, np.bool_)
    one = 0.0 if each is not None else float(share)
    function(*key, start, n, one, _address(each), out.ctypes.data)
    return out


def gram(blocks: Sequence[Stored], origin: Stored | None) -> _F64 | None:
    """See `changes.gram`."""
    function = _loaded("gram")
    many = None if function is None else _many([*blocks, *([] if origin is None else [origin])])
    if function is None or many is None:
        return None
    types, addresses, n, _held = many
    k = len(blocks)
    start = (0, None) if origin is None else (types[k], addresses[k])
    out = np.empty(k * (k + 512))
    function(types, addresses, k, *start, n, out.ctypes.data)
    return out[: k * k].reshape(k, k).copy()


def mix_centred(
    blocks: Sequence[Stored], weights: Sequence[float], total: float, out: Array
) -> bool:
    """See `centred.mix`: whether it was made."""
    function = _loaded("mix_centred")
    many = None if function is None else _many(blocks, beside=out)
    if function is None or many is None:
        return False
    types, addresses, n, _held = many
    factors = (ctypes.c_float * len(blocks))(*weights)
    function(types, addresses, factors, len(blocks), total, n, out.ctypes.data)
    return True


def dot_centred(blocks: Sequence[Stored], vector: Array) -> _F64 | None:
    """See `centred.dot`."""
    function = _loaded("dot_centred")
    many = None if function is None else _many(blocks, beside=vector)
    if function is None or many is None:
        return None
    types, addresses, n, _held = many
    out = np.empty(len(blocks))
    function(types, addresses, len(blocks), vector.ctypes.data, n, out.ctypes.data)
    return out


def _of_pair(name: str, value: Stored, base: Stored) -> tuple[Callable[..., int], int] | None:
    """A function of changes with its first arguments, types, blocks and length, and the length.

    None where it is not compiled, or a type is none of the compiled ones.
    """
    function = _loaded(name)
    many = None if function is None else _many([value, base])
    if function is None or many is None:
        return None
    types, _, n, held = many

    def call(*others: object) -> int:
        return function(*types, *_addresses(held), n, *others)

    return call, n


def _many(
    blocks: Sequence[Stored], beside: Array | None = None
) -> tuple[Any, Any, int, list[Array]] | None:
    """Types, addresses and length of blocks, and what has to be held meanwhile.

    None where one of them has no compiled type, or `beside` is not float32 and contiguous.
    """
    if any(one.dtype not in _TYPES for one in blocks):
        return None
    if beside is not None and (beside.dtype != np.float32 or not beside.flags.c_contiguous):
        return None
    held = [np.ascontiguousarray(one.block) for one in blocks]
    n = held[0].size if beside is None else beside.size
    if any(block.size != n for block in held):
        raise ValueError("compiled sums want blocks of one length")
    types = (ctypes.c_int * len(held))(*(_TYPES[one.dtype] for one in blocks))
    return types, _addresses(held), n, held


def _trim(trim: Trim, factor: float, n: int) -> tuple[_Numbers, Array | None, _F64 | None]:
    """The numbers of a trim, and its arrays of `n`."""
    kept = None if trim.kept is None else np.ascontiguousarray(trim.kept)
    shares = np.ascontiguousarray(trim.share, np.float64) if np.ndim(trim.share) else None
    if any(one is not None and one.size != n for one in (kept, shares)):
        raise ValueError("compiled changes want blocks of one length")
    share = 1.0 if shares is not None else float(trim.share)
    return (trim.least, trim.most, share, factor), kept, shares


def _addresses(blocks: Sequence[Array | None]) -> Any:
    return (ctypes.c_void_p * len(blocks))(*map(_address, blocks))


def _address(block: Array | None) -> int | None:
    return None if block is None else block.ctypes.data


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within it, a mapped file that is cut short reads as zeros and does not end the process.

    Whoever reads has to look afterwards whether the files are what they were. Without compiled code
    it does nothing. The handler of SIGBUS is the process's own again when the last block ends.
    """
    guard = _loaded("guard")
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


_ARGUMENTS: Mapping[str, Any] = {
    "i": ctypes.c_int, "p": ctypes.c_void_p, "d": ctypes.c_double, "n": ctypes.c_size_t,
    "q": ctypes.c_uint64, "f": ctypes.c_float,
}  # fmt: skip
_FUNCTIONS: Mapping[str, str] = {
    "guard": "i i",
    "mix": "i iippnnp",
    "add": "i iipdpnp",
    "trim": "i iippnpppp",
    "merge": "i ppnnppppip",
    "variances": "i ppnnp",
    "squares": "n ppnndp",
    "count_sizes": "i iippniqp",
    "count": "i pniqp",
    "sizes": "n iippniqp",
    "pick": "n pniqp",
    "l1_norms": "i iippnddpp",
    "by_rank": "i iippnnpp",
    "kept": "i qqqndpp",
    "gram": "i ppnipnp",
    "mix_centred": "i pppnfnp",
    "dot_centred": "i ppnpnp",
}
"""Each function of the library: the letter of what it returns, and those of its arguments."""


@functools.cache
def _loaded(name: str) -> Callable[..., int] | None:
    """A function of the library; None where it is not there."""
    result, arguments = _FUNCTIONS[name].split()
    try:
        function = ctypes.CDLL(str(_LIBRARY))[f"stockpot_{name}"]
    except (OSError, AttributeError):  # not compiled, for another machine, or an older one
        return None
    function.argtypes = [_ARGUMENTS[letter] for letter in arguments]
    function.restype = _ARGUMENTS[result]
    found: Callable[..., int] = function
    return found
