"""Tensors that lie in mapped files: with strides, or as runs of bytes one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot.formats.base import Checkpoint
from stockpot.io.storage import MappedFile
from stockpot.tensors.spec import TensorSpec

Elements: TypeAlias = "npt.NDArray[np.void]"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: the byte of its first element, sizes and strides (in bytes).

    Dimensions of size 1 are left out: their strides mean nothing and may be any number.
    """

    at: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def is_contiguous(self, item: int) -> bool:
        """Whether elements of `item` bytes lie in row-major order without gaps."""
        expected = item
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if stride != expected:
                return False
            expected *= size
        return True


class StridedCheckpoint(Checkpoint):
    """Tensors of one file, each at a `Place`; a reader sets `_file` and `_places`."""

    _file: MappedFile
    _places: Mapping[str, Place]

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`: mapped, or copied into order when its strides are unusual."""
        spec = self[name]
        raw = self.part(name, 0, spec.nbytes)
        raw.flags.writeable = False
        return raw

    def scattered(self, name: str) -> bool:
        """Whether its strides are those of another order: transposed, or every second element."""
        spec = self[name]
        return spec.numel > 0 and not self._places[name].is_contiguous(spec.dtype.bits // 8)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`, gathered where its strides are unusual."""
        spec, place = self[name], self._places[name]
        if spec.numel == 0 or start >= stop:
            return np.zeros(0, np.uint8)
        data = self._file.bytes()
        if not self.scattered(name):
            return data[place.at + start : place.at + stop]
        item = spec.dtype.bits // 8
        elements = np.ndarray(
            place.sizes, f"V{item}", buffer=data.data, offset=place.at, strides=place.strides
        )
        pieces = [*_gathered(elements, start // item, -(-stop // item))]
        gathered = np.concatenate([piece.reshape(-1) for piece in pieces]).view(np.uint8)
        return gathered[start % item : start % item + stop - start]


def _gathered(view: Elements, start: int, stop: int) -> Iterator[Elements]:
    """Elements `start` to `stop` of `view` in row-major order, in pieces of whole rows."""
    if view.ndim == 1:
        yield view[start:stop]
        return
    row = math.prod(view.shape[1:])
    first, last = start // row, (stop - 1) // row
    if first == last:
        yield from _gathered(view[first], start - first * row, stop - first * row)
        return
    if start % row:
        yield from _gathered(view[first], start % row, row)
        first += 1
    n_whole = stop // row - first
    if n_whole > 0:
        yield np.ascontiguousarray(view[first : first + n_whole])
    if stop % row:
        yield from _gathered(view[last], 0, stop % row)


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of a file that are bytes of a tensor, one after the other in both."""

    file: MappedFile
    at: int
    n_bytes: int


class RunsCheckpoint(Checkpoint):
    """Tensors that are made of runs of bytes, in row-major order; a reader sets `_runs`.

    The runs of a tensor have as many bytes as it, and lie in their files.
    """

    _runs: Mapping[str, Sequence[Run]]

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`: mapped where they are one run, else put together."""
        raw = self.part(name, 0, self[name].nbytes)
        raw.flags.writeable = False
        return raw

    def scattered(self, name: str) -> bool:
        """Whether it is made of several runs."""
        self[name]
        return len(self._runs[name]) > 1

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`."""
        pieces = []
        for run in self._runs[name] if name in self else ():
            if start < run.n_bytes and stop > 0:
                data = run.file.bytes()
                pieces.append(data[run.at + max(start, 0) : run.at + min(stop, run.n_bytes)])
            start, stop = start - run.n_bytes, stop - run.n_bytes
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)


def joined(paths: Sequence[tuple[str, ...]]) -> tuple[list[str], str]:
    """Names for tensors at `paths` of nested dictionaries, and what stands between the parts.

    A dot, as in torch; a slash where a part holds a dot, so that the parts can be told apart.

    >>> joined([("params", "dense", "kernel")])
    (['params.dense.kernel'], '.')
    >>> joined([("layer_._0", "kernel:0")])
    (['layer_._0/kernel:0'], '/')
    """
    between = "/" if any("." in part for path in paths for part in path) else "."
    return [between.join(path) for path in paths], between


def parted(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The paths that `joined` made `names` of."""
    between = "/" if any("/" in name for name in names) else "."
    return [tuple(name.split(between)) for name in names]


def contiguous(spec: TensorSpec, at: int, *, fortran: bool = False) -> Place:
    """The place of a tensor without gaps, its first index the slowest or, in Fortran, fastest."""
    strides, step = [0] * len(spec.shape), spec.dtype.bits // 8
    axes = range(len(spec.shape))
    for axis in axes if fortran else reversed(axes):
        strides[axis] = step
        step *= spec.shape[axis]
    sides = [(n, s) for n, s in zip(spec.shape, strides, strict=True) if n != 1]
    return Place(at, tuple(n for n, _ in sides), tuple(s for _, s in sides))
