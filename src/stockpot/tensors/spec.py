"""What a checkpoint says of a tensor without its values: name, dtype, shape."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stockpot.errors import RecipeError


class DType(enum.StrEnum):
    """Element types, by their names in the safetensors format."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    F4 = "F4"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"
    C64 = "C64"

    @property
    def bits(self) -> int:
        """Bits an element takes on disk."""
        return _TABLE[self].bits

    @property
    def mixable(self) -> bool:
        """Whether values of this type can be averaged: F64, F32, F16 and BF16.

        Integers, booleans, complex and quantised (8 bits and fewer) types are copied or refused.
        """
        return self in _MIXABLE

    @property
    def storage(self) -> np.dtype[np.generic]:
        """NumPy type whose little-endian bytes are those on disk; BF16 is seen as uint16.

        Types of 8 bits and fewer are seen as uint8.
        """
        return np.dtype(_TABLE[self].storage)

    @property
    def rank(self) -> int:
        """Place in the order of the safetensors library, which puts higher ones first in a file.

        Every tensor is then aligned to its elements without padding.
        """
        return _RANK[self]

    @property
    def torch_name(self) -> str | None:
        """Its name in torch, such as `"bfloat16"`; None where torch has no such type."""
        return _TABLE[self].torch

    @property
    def torch_storage(self) -> str | None:
        """The class of torch's typed storages, such as `"BFloat16Storage"`; None: untyped ones."""
        return _TABLE[self].torch_storage


class _Facts(NamedTuple):
    """What is known of an element type; `names` are spellings beside that of torch."""

    bits: int
    storage: str
    torch: str | None = None
    torch_storage: str | None = None
    names: tuple[str, ...] = ()


# In the order of the safetensors library, least aligned first.
_TABLE = {
    DType.BOOL: _Facts(8, "?", "bool", "BoolStorage"),
    DType.F4: _Facts(4, "u1"),
    DType.F6_E2M3: _Facts(6, "u1"),
    DType.F6_E3M2: _Facts(6, "u1"),
    DType.U8: _Facts(8, "u1", "uint8", "ByteStorage", ("byte",)),
    DType.I8: _Facts(8, "i1", "int8", "CharStorage"),
    DType.F8_E5M2: _Facts(8, "u1", "float8_e5m2"),
    DType.F8_E4M3: _Facts(8, "u1", "float8_e4m3fn"),
    DType.F8_E8M0: _Facts(8, "u1", "float8_e8m0fnu"),
    DType.F8_E4M3FNUZ: _Facts(8, "u1", "float8_e4m3fnuz"),
    DType.F8_E5M2FNUZ: _Facts(8, "u1", "float8_e5m2fnuz"),
    DType.I16: _Facts(16, "<i2", "int16", "ShortStorage", ("short",)),
    DType.U16: _Facts(16, "<u2", "uint16"),
    DType.F16: _Facts(16, "<f2", "float16", "HalfStorage", ("half", "fp16")),
    DType.BF16: _Facts(16, "<u2", "bfloat16", "BFloat16Storage", ("bfloat",)),
    DType.I32: _Facts(32, "<i4", "int32", "IntStorage", ("int",)),
    DType.U32: _Facts(32, "<u4", "uint32"),
    DType.F32: _Facts(32, "<f4", "float32", "FloatStorage", ("float", "fp32", "single")),
    DType.C64: _Facts(64, "<c8", "complex64", "ComplexFloatStorage"),
    DType.F64: _Facts(64, "<f8", "float64", "DoubleStorage", ("double", "fp64")),
    DType.I64: _Facts(64, "<i8", "int64", "LongStorage", ("long",)),
    DType.U64: _Facts(64, "<u8", "uint64"),
}
_MIXABLE = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
_RANK = {dtype: rank for rank, dtype in enumerate(_TABLE)}
_OF_STORAGE = {facts.torch_storage: dtype for dtype, facts in _TABLE.items() if facts.torch_storage}
_OF_TORCH = {facts.torch: dtype for dtype, facts in _TABLE.items() if facts.torch}
_SPELLINGS = {
    name.upper(): dtype
    for dtype, facts in _TABLE.items()
    for name in (dtype.value, facts.torch or dtype.value, *facts.names)
}


def of_torch_name(name: str) -> DType | None:
    """The type that torch calls `name`, such as `"bfloat16"`, exactly; None for no such type."""
    return _OF_TORCH.get(name)


def of_torch_storage(name: str) -> DType | None:
    """The type of the elements of torch's storage class `name`; None for no such class."""
    return _OF_STORAGE.get(name)


def parse_dtype(text: str) -> DType:
    """The type meant by any usual spelling: `bf16`, `bfloat16`, `torch.bfloat16`, `BF16`, …

    >>> parse_dtype("torch.bfloat16"), parse_dtype("fp32"), parse_dtype("half")
    (<DType.BF16: 'BF16'>, <DType.F32: 'F32'>, <DType.F16: 'F16'>)

    Raises:
        RecipeError: no type is spelled so.
    """
    key = text.strip().upper().removeprefix("TORCH.").removeprefix("NUMPY.")
    if key in _SPELLINGS:
        return _SPELLINGS[key]
    raise RecipeError(f"{text!r:.60} is not a dtype; for example f32, bf16, f16 or f64")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one tensor.

    >>> spec = TensorSpec("w", DType.BF16, (2, 3))
    >>> spec.numel, spec.nbytes
    (6, 12)
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.numel * self.dtype.bits // 8

    def array(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
        """`raw` (the bytes of the whole tensor) seen with `dtype.storage` and this shape; no copy.

        Types narrower than a byte come back flat, as bytes.
        """
        if self.dtype.bits < 8:
            return raw
        return raw.view(self.dtype.storage).reshape(self.shape)
