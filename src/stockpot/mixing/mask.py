"""Which weights are kept: one bit each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.errors import MaskMismatchError, Problem
from stockpot.formats.base import Checkpoint
from stockpot.tensors.rounding import nonzero

_Bits = npt.NDArray[np.uint8]

Values: TypeAlias = Any
"""A NumPy array, or a torch tensor on any device."""


def as_array(values: Values) -> npt.NDArray[Any]:
    """`values` as an array, of float32 where it is narrower; exact for every floating type.

    Nothing is copied where nothing has to be, so the result is only to be read.
    """
    if not hasattr(values, "detach"):
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype == np.float16 else array
    values = values.detach().cpu()
    if values.is_floating_point() and values.element_size() < 4:
        values = values.float()
    return cast("npt.NDArray[Any]", values.numpy())


class Mask:
    """The kept positions of some tensors (True = kept); all other tensors are dense.

    Immutable. Eight positions take a byte. The sparsity of a mask is over the tensors that it
    names, which are the prunable ones: norms and biases do not count.

    Args:
        kept: name → boolean array of the tensor's shape.

    >>> mask = Mask({"w": np.array([[True, False], [False, True]])})
    >>> mask.sparsity, mask.n_kept, mask
    (0.5, 2, <Mask of 1 tensors: 2 of 4 weights kept, sparsity 0.5000>)
    """

    __slots__ = ("_bits", "_fingerprint", "_n_kept", "_shapes")

    def __init__(self, kept: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {n: tuple(k.shape) for n, k in kept.items()}
        self._bits: dict[str, _Bits] = {
            name: np.packbits(np.asarray(array, np.bool_)) for name, array in kept.items()
        }
        self._n_kept = {name: int(np.count_nonzero(array)) for name, array in kept.items()}
        self._fingerprint: str | None = None
        for bits in self._bits.values():
            bits.flags.writeable = False

    @classmethod
    def of_nonzero(cls, values: Mapping[str, Values]) -> Mask:
        """What is not zero in `values` is kept (−0.0 is zero).

        A weight that training happened to leave at zero cannot be told from a pruned one.

        >>> Mask.of_nonzero({"w": np.array([0.0, -0.0, 2.0])}).kept("w").tolist()
        [False, False, True]
        """
        return cls({name: as_array(array) != 0 for name, array in values.items()})

    @classmethod
    def dense(cls, shapes: Mapping[str, tuple[int, ...]]) -> Mask:
        """Everything is kept."""
        return cls({name: np.ones(shape, np.bool_) for name, shape in shapes.items()})

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        """True where tensor `name` is kept; of its shape, in memory of its own."""
        shape = self._shapes[name]
        flat = np.unpackbits(self._bits[name], count=int(np.prod(shape, dtype=np.int64)))
        return flat.view(np.bool_).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of the masked tensors."""
        return dict(self._shapes)

    @property
    def n_weights(self) -> int:
        """Weights of all masked tensors."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self._shapes.values())

    @property
    def n_kept(self) -> int:
        """Those that are kept."""
        return sum(self._n_kept.values())

    @property
    def n_zeros(self) -> int:
        """Those that are not."""
        return self.n_weights - self.n_kept

    @property
    def sparsity(self) -> float:
        """Fraction of the masked tensors' weights that is zero; 0 of no tensors."""
        return self.n_zeros / self.n_weights if self.n_weights else 0.0

    @property
    def sparsities(self) -> dict[str, float]:
        """Name → fraction of the tensor that is zero."""
        return {
            name: 1 - self._n_kept[name] / max(1, int(np.prod(shape, dtype=np.int64)))
            for name, shape in self._shapes.items()
        }

    @property
    def fingerprint(self) -> str:
        """XXH3-128 over names, shapes and bits, in the order of names."""
        if self._fingerprint is None:
            state = xxhash.xxh3_128()
            for name in sorted(self._shapes):
                state.update(f"{name}\0{self._shapes[name]}\0".encode())
                state.update(self._bits[name].data)
            self._fingerprint = state.hexdigest()
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._shapes == other._shapes and all(
            np.array_equal(bits, other._bits[name]) for name, bits in self._bits.items()
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"<Mask of {len(self)} tensors: {self.n_kept} of {self.n_weights} weights kept, "
            f"sparsity {self.sparsity:.4f}>"
        )

    def __and__(self, other: Mask) -> Mask:
        """Intersection: kept by both."""
        self._require_same_tensors(other)
        return Mask({name: self.kept(name) & other.kept(name) for name in self})

    def __or__(self, other: Mask) -> Mask:
        """Union: kept by one of them. It is what remains sparse in an average of the two."""
        self._require_same_tensors(other)
        return Mask({name: self.kept(name) | other.kept(name) for name in self})

    def __le__(self, other: Mask) -> bool:
        """Whether everything that is kept here is kept in `other`: masks of phases are nested."""
        self._require_same_tensors(other)
        return all(
            not np.bitwise_and(bits, np.bitwise_not(other._bits[name])).any()
            for name, bits in self._bits.items()
        )

    def applied(self, name: str, values: Values) -> npt.NDArray[np.generic]:
        """A copy of tensor `name` with +0.0 where it is not kept; floating arrays only."""
        array = np.array(as_array(values))
        if name in self._shapes:
            array[~self.kept(name)] = 0
        return array

    def broken_by(self, values: Mapping[str, Values]) -> dict[str, int]:
        """Name → how many weights of `values` are not zero where the mask has a zero.

        Tensors without any are left out; so nothing is left of values that keep the mask.
        """
        found = {}
        for name in self:
            n_wrong = int(np.count_nonzero(as_array(values[name])[~self.kept(name)]))
            if n_wrong:
                found[name] = n_wrong
        return found

    def _require_same_tensors(self, other: Mask) -> None:
        if self._shapes == other._shapes:
            return
        names = dict.fromkeys([*self._shapes, *other._shapes])
        problems = [
            Problem("the other mask", n, str(other._shapes.get(n)), str(self._shapes.get(n)))
            for n in names
            if self._shapes.get(n) != other._shapes.get(n)
        ]
        lines = [f"  {p.tensor}: shape {p.found}, expected {p.expected}" for p in problems[:20]]
        raise MaskMismatchError(
            "\n".join([f"the masks cover different tensors ({len(problems)}):", *lines]), problems
        )


class NonzeroMask:
    """The mask of weights that are not zero in some of `checkpoints`, made when it is asked for.

    It takes no memory for itself, as a `Mask` would, and has the fingerprint of an equal one.

    Args:
        checkpoints: of one layout.
        names: the tensors that it covers.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> None:
        self._checkpoints = tuple(checkpoints)
        self._names = dict.fromkeys(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        """True where tensor `name` is not zero in some of the checkpoints; of its shape."""
        first = self._checkpoints[0][name]
        kept = np.zeros(first.numel, np.bool_)
        for checkpoint in self._checkpoints:
            kept |= nonzero(checkpoint.raw(name), checkpoint[name].dtype)
        return kept.reshape(first.shape)

    @cached_property
    def _summary(self) -> tuple[str, float]:
        state, n_kept, total = xxhash.xxh3_128(), 0, 0
        for name in sorted(self._names):
            kept = self.kept(name)
            state.update(f"{name}\0{kept.shape}\0".encode())
            state.update(np.packbits(kept).data)
            n_kept += int(np.count_nonzero(kept))
            total += kept.size
        return state.hexdigest(), 1 - n_kept / max(1, total)

    @property
    def fingerprint(self) -> str:
        """That of the `Mask` that keeps the same weights."""
        return self._summary[0]

    @property
    def sparsity(self) -> float:
        """Share of the covered weights that is zero."""
        return self._summary[1]
