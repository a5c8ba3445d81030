"""What becomes of tensors that are never averaged: integers, booleans, quantised values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.tensors.spec import DType, TensorSpec

Differing = Literal["refuse", "first", "maximum"]
_Raw = npt.NDArray[np.uint8]

_INTEGERS = frozenset(
    {DType.I64, DType.I32, DType.I16, DType.I8, DType.U64, DType.U32, DType.U16, DType.U8}
)


@dataclass(frozen=True)
class BufferPolicy:
    """What to do with tensors that are not averaged.

    Equal ones are copied. Counters that differ become the largest. Anything else that differs is
    refused, because neither value would be right, unless `differing` says what is wanted.

    Attributes:
        counters: last parts of the names of integer counters.
        differing: `"refuse"`; `"first"` takes the value of the first ingredient that takes part, as
            given; `"maximum"` the largest integer.
    """

    counters: tuple[str, ...] = ("num_batches_tracked",)
    differing: Differing = "refuse"

    def __post_init__(self) -> None:
        if self.differing not in ("refuse", "first", "maximum"):
            raise ValueError(
                f"differing is {self.differing!r}; expected 'refuse', 'first' or 'maximum'"
            )

    def to_json(self) -> dict[str, JSON]:
        """A JSON object, the keyword arguments of the constructor."""
        return {"counters": list(self.counters), "differing": self.differing}

    def takes_maximum(self, spec: TensorSpec) -> bool:
        """Whether differing values of this tensor become the largest."""
        if spec.dtype not in _INTEGERS:
            return False
        return self.differing == "maximum" or spec.name.rsplit(".", 1)[-1] in self.counters

    def remedy(self, spec: TensorSpec) -> str:
        """What a person can do about differing values of this tensor."""
        if spec.dtype in _INTEGERS or spec.dtype is DType.BOOL:
            return "equal values in all (or a buffer policy that says which to take)"
        return "equal values in all: quantised tensors are not averaged, dequantise them first"


def combine_buffers(spec: TensorSpec, blocks: Sequence[_Raw], policy: BufferPolicy) -> _Raw | int:
    """The bytes that become of equally long `blocks`, in the order given.

    Returns:
        The bytes, or the position of the first block that differs from the first where the policy
        refuses that.
    """
    first = blocks[0]
    differs = next((i for i, block in enumerate(blocks) if not np.array_equal(block, first)), None)
    if differs is None:
        return first
    if policy.takes_maximum(spec):
        typed = [block.view(spec.dtype.storage) for block in blocks]
        largest: _Raw = np.maximum.reduce(typed).view(np.uint8)
        return largest
    return first if policy.differing == "first" else differs
