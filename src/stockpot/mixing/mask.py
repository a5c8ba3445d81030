"""Which weights are kept: one bit each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot.errors import MaskMismatchError, Problem
from stockpot.mixing.mask_values import Values, as_array

_Bits = npt.NDArray[np.uint8]


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
