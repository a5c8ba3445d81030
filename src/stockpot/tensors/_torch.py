"""The few places where raw bytes become torch tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stockpot.errors import CheckpointError
from stockpot.tensors.spec import DType, TensorSpec


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of the same elements; types narrower than a byte are seen as bytes.

    Raises:
        CheckpointError: this torch has no such type.
    """
    name = dtype.torch_name or "uint8"
    found: torch.dtype | None = getattr(torch, name, None)
    if found is None:
        raise CheckpointError(
            f"torch {torch.__version__} has no {name}, the type of a tensor here: a newer one has"
        )
    return found


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
