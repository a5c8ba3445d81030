"""Sums and inner products of several blocks, centred on the first, in a working precision.

Fine-tuned models differ by a fraction of a percent: ⟨g, θᵢ⟩ is a large common term and a small
difference, and in float32 the difference would drown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stockpot.tensors import compiled
from stockpot.tensors.rounding import Array, widen
from stockpot.tensors.trim import Stored

PART = 1 << 15
"""Numbers that NumPy works on at a time, so that its arrays stay in the cache."""
_SUM_WIDTH = 8192
"""Products are summed in the working precision over this many elements, in float64 beyond.

BLAS divides longer ones among threads of its own, beside ours."""


def mix(blocks: Sequence[Stored], weights: npt.NDArray[np.float64], out: Array) -> None:
    """Put x₀·Σcᵢ + Σ cᵢ·(xᵢ − x₀) into `out`, in its precision.

    Weights are rounded to it; blocks of weight 0 are not looked at.

    Args:
        blocks: (n,) each.
        weights: (k,).
        out: float32 or float64, (n,), contiguous.

    >>> out = np.empty(2)
    >>> mix([Stored(np.array([1.0, 2]), "F64"), Stored(np.array([3.0, 4]), "F64")],
    ...     np.array([0.5, 0.5]), out)
    >>> out
    array([2., 3.])
    """
    own = weights.astype(out.dtype)
    total = out.dtype.type(weights.sum())
    if compiled.mix_centred(blocks, own.tolist(), float(total), out):
        return
    others = [i for i in range(1, len(blocks)) if own[i] != 0]
    for start in range(0, out.size, PART):
        part = slice(start, start + PART)
        first = _single(blocks[0], part, out.dtype)
        found = np.zeros_like(first)
        for i in others:
            found += (_single(blocks[i], part, out.dtype) - first) * own[i]
        out[part] = found + first * total


def dot(blocks: Sequence[Stored], vector: Array) -> npt.NDArray[np.float64]:
    """⟨v, x₀⟩, and ⟨v, xᵢ − x₀⟩ of the others: float64, (k,).

    Products have the precision of `vector`, and so have sums of a few hundred of them at most;
    beyond, sums are float64. The last bits are those of the compiled pass, or else of BLAS.

    Args:
        blocks: (n,) each.
        vector: float32 or float64, (n,), contiguous.

    >>> x = [Stored(np.array([1.0, 2]), "F64"), Stored(np.array([3.0, 4]), "F64")]
    >>> dot(x, np.array([1.0, 0.5]))
    array([2., 3.])
    """
    found = compiled.dot_centred(blocks, vector)
    if found is not None:
        return found
    sums = np.zeros(len(blocks))
    for start in range(0, vector.size, PART):
        part = slice(start, start + PART)
        first = _single(blocks[0], part, vector.dtype)
        sums[0] += wide_dot(first, vector[part])
        for i in range(1, len(blocks)):
            sums[i] += wide_dot(_single(blocks[i], part, vector.dtype) - first, vector[part])
    return sums


def squares(blocks: Sequence[Stored], dtype: np.dtype[np.floating]) -> npt.NDArray[np.float64]:
    """‖xᵢ − m‖² about the mean m, in the precision `dtype`: float64, (k,); summed as by `dot`.

    >>> squares([Stored(np.array([1.0, 2]), "F64"), Stored(np.array([3.0, 4]), "F64")],
    ...     np.dtype("f8"))
    array([2., 2.])
    """
    sums = np.zeros(len(blocks))
    for start in range(0, blocks[0].block.size, PART):
        part = slice(start, start + PART)
        first = _single(blocks[0], part, dtype)
        mean = np.zeros_like(first)
        for one in blocks:
            mean += _single(one, part, dtype) - first
        mean /= len(blocks)
        for i, one in enumerate(blocks):
            apart = _single(one, part, dtype) - first
            apart -= mean
            sums[i] += wide_dot(apart, apart)
    return sums


def wide_dot(a: Array, b: Array) -> float:
    """⟨a, b⟩ of vectors, in float64 over sums of `_SUM_WIDTH` products."""
    whole = len(a) // _SUM_WIDTH * _SUM_WIDTH
    # As np.vecdot, to the bit, which NumPy before 2.0 does not have.
    rows, columns = a[:whole].reshape(-1, 1, _SUM_WIDTH), b[:whole].reshape(-1, _SUM_WIDTH, 1)
    sums = np.matmul(rows, columns)
    return float(sums.sum(dtype=np.float64)) + float(np.dot(a[whole:], b[whole:]))


def _single(one: Stored, part: slice, dtype: np.dtype[np.floating]) -> Array:
    return widen(one.block[part], one.dtype).astype(dtype, copy=False)
