"""The few places where raw bytes become torch tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stockpot.tensors.spec import DType, TensorSpec

_TORCH = {
    DType.F64: torch.float64, DType.F32: torch.float32, DType.F16: torch.float16,
    DType.BF16: torch.bfloat16, DType.F8_E4M3: torch.float8_e4m3fn,
    DType.F8_E5M2: torch.float8_e5m2, DType.F8_E8M0: torch.float8_e8m0fnu,
    DType.F8_E4M3FNUZ: torch.float8_e4m3fnuz, DType.F8_E5M2FNUZ: torch.float8_e5m2fnuz,
    DType.I64: torch.int64, DType.I32: torch.int32, DType.I16: torch.int16, DType.I8: torch.int8,
    DType.U64: torch.uint64, DType.U32: torch.uint32, DType.U16: torch.uint16,
    DType.U8: torch.uint8, DType.BOOL: torch.bool, DType.C64: torch.complex64,
}  # fmt: skip


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of the same elements; types narrower than a byte are seen as bytes."""
    return _TORCH.get(dtype, torch.uint8)


def tensor_from_raw(spec: TensorSpec, raw: npt.NDArray[np.uint8]) -> torch.Tensor:
    """A tensor of its own memory with the values of `raw`, the bytes of the whole tensor."""
    if raw.size == 0:
        return torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
    flat = torch.from_numpy(np.array(raw, copy=True))
    if spec.dtype.bits < 8:
        return flat
    return flat.view(torch_dtype(spec.dtype)).reshape(spec.shape)


def bytes_of(spec: TensorSpec, tensor: torch.Tensor) -> npt.NDArray[np.uint8] | None:
    """The memory of `tensor` as the bytes that `spec` describes, to be written to.

    None where it is laid out in another way, has another type, or is not the CPU's.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if spec.dtype.bits < 8 or tensor.dtype != torch_dtype(spec.dtype):
        return None
    if tuple(tensor.shape) != spec.shape or tensor.numel() == 0:
        return None
    found: npt.NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return found
