"""What a checkpoint says of a tensor without its values: name, dtype, shape."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
        return _BITS[self]

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
        return np.dtype(_STORAGE.get(self, "u1"))


_BITS = {
    **dict.fromkeys((DType.F64, DType.I64, DType.U64, DType.C64), 64),
    **dict.fromkeys((DType.F32, DType.I32, DType.U32), 32),
    **dict.fromkeys((DType.F16, DType.BF16, DType.I16, DType.U16), 16),
    **dict.fromkeys((DType.F6_E2M3, DType.F6_E3M2), 6),
    DType.F4: 4,
}
_BITS.update({dtype: 8 for dtype in DType if dtype not in _BITS})
_MIXABLE = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
_STORAGE = {
    DType.F64: "<f8", DType.F32: "<f4", DType.F16: "<f2", DType.BF16: "<u2",
    DType.I64: "<i8", DType.I32: "<i4", DType.I16: "<i2", DType.I8: "i1",
    DType.U64: "<u8", DType.U32: "<u4", DType.U16: "<u2", DType.BOOL: "?", DType.C64: "<c8",
}  # fmt: skip
_SPELLINGS = {
    "DOUBLE": DType.F64, "FLOAT64": DType.F64, "FP64": DType.F64,
    "FLOAT": DType.F32, "FLOAT32": DType.F32, "FP32": DType.F32, "SINGLE": DType.F32,
    "HALF": DType.F16, "FLOAT16": DType.F16, "FP16": DType.F16,
    "BFLOAT16": DType.BF16, "BFLOAT": DType.BF16,
    "FLOAT8_E4M3FN": DType.F8_E4M3, "FLOAT8_E5M2": DType.F8_E5M2,
    "LONG": DType.I64, "INT64": DType.I64, "INT": DType.I32, "INT32": DType.I32,
    "SHORT": DType.I16, "INT16": DType.I16, "INT8": DType.I8,
    "UINT64": DType.U64, "UINT32": DType.U32, "UINT16": DType.U16, "UINT8": DType.U8,
    "BYTE": DType.U8, "COMPLEX64": DType.C64,
}  # fmt: skip


def parse_dtype(text: str) -> DType:
    """The type meant by any usual spelling: `bf16`, `bfloat16`, `torch.bfloat16`, `BF16`, …

    >>> parse_dtype("torch.bfloat16"), parse_dtype("fp32"), parse_dtype("half")
    (<DType.BF16: 'BF16'>, <DType.F32: 'F32'>, <DType.F16: 'F16'>)

    Raises:
        ValueError: no type is spelled so.
    """
    key = text.strip().upper().removeprefix("TORCH.").removeprefix("NUMPY.")
    if key in DType.__members__:
        return DType[key]
    if key in _SPELLINGS:
        return _SPELLINGS[key]
    raise ValueError(f"{text!r} is not a dtype; for example f32, bf16, f16 or f64")


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
