"""A state dict or module in memory, seen as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointFormatError
from stockpot.formats.base import Checkpoint, View
from stockpot.formats.names import without_wrappers
from stockpot.tensors.spec import DType, TensorSpec, parse_dtype

if TYPE_CHECKING:
    import torch


def from_state_dict(
    source: Mapping[str, Any] | torch.nn.Module, *, path: str = "<memory>"
) -> Checkpoint:
    """`source`, a module or a mapping of names to torch tensors or NumPy arrays, as a checkpoint.

    Nothing is copied: values are read from `source` when they are asked for, so changing it later
    changes what is read. Tensors that share their storage are tied; entries that are no tensors
    (`_extra_state`) are left out and named in `notes`.

    Args:
        path: the name that messages give it.

    Raises:
        CheckpointFormatError: a tensor that has no plain values (meta, sparse, quantised), or a
            dtype that no checkpoint format holds.

    >>> import numpy as np
    >>> from_state_dict({"module.w": np.zeros((2, 3), np.float32)})["w"]
    TensorSpec(name='w', dtype=<DType.F32: 'F32'>, shape=(2, 3))
    """
    if not isinstance(source, Mapping):
        source = source.state_dict()
    return without_wrappers(MemoryCheckpoint(source, path=path))


class MemoryCheckpoint(Checkpoint):
    """A mapping of names to tensors, on any device."""

    format = "memory"

    def __init__(self, state: Mapping[str, Any], *, path: str = "<memory>") -> None:
        tensors = {
            name: value
            for name, value in state.items()
            if hasattr(value, "shape") and hasattr(value, "dtype")
        }
        if not tensors:
            raise CheckpointFormatError(f"{path} holds no tensors")
        others = [str(name) for name in state if name not in tensors]
        notes = (f"left out, not tensors: {', '.join(others)}",) if others else ()
        self._tensors = tensors
        super().__init__(
            path,
            {name: _spec(name, value, path) for name, value in self._tensors.items()},
            tied=_tied(self._tensors),
            notes=notes,
        )

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`; copied when it is not contiguous or not on the CPU."""
        if self[name].numel == 0:
            return np.zeros(0, np.uint8)
        value = self._tensors[name]
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"), copy=False)
            flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
        else:
            flat = _torch_bytes(value)
        raw = flat.view()
        raw.flags.writeable = False
        return raw


def hold(checkpoint: Checkpoint) -> Checkpoint:
    """A copy of `checkpoint` in memory: every tensor is read once, now, and never again.

    It costs the memory of all tensors. In messages, records and caches it is the original.

    >>> import numpy as np
    >>> weights = {"w": np.zeros(2, np.float32)}
    >>> held = hold(from_state_dict(weights))
    >>> weights["w"] += 1
    >>> held.read("w")
    tensor([0., 0.])
    """
    return checkpoint if isinstance(checkpoint, HeldCheckpoint) else HeldCheckpoint(checkpoint)


class HeldCheckpoint(View):
    """The values of another checkpoint as they were when it was made."""

    def __init__(self, source: Checkpoint) -> None:
        super().__init__(source, dict(source), tied=source.tied, notes=source.notes)
        values = {name: source.raw(name).copy() for name in source.distinct}
        for value in values.values():
            value.flags.writeable = False
        self._values = {name: values[self.leaders.get(name, name)] for name in source}

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`."""
        self[name]  # refuses names that there are not
        return self._values[name]

    @property
    def fingerprint(self) -> str:
        """As of the original; made once, since these values do not change."""
        from stockpot.formats.fingerprint import fingerprint

        if self._fingerprint is None:
            self._fingerprint = fingerprint(self)
        return self._fingerprint


def _torch_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    import torch

    # resolve_*: conj() and negative views are lazy, and view() would show the values before them.
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Of a single element any stride is contiguous; view() wants it to be 1.
    flat = values.as_strided((values.numel(),), (1,))
    array: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return array


def _spec(name: str, value: Any, path: str) -> TensorSpec:
    shape = tuple(int(size) for size in value.shape)
    if isinstance(value, np.ndarray):
        dtype = _dtype(value.dtype.name, name, path)
    else:
        layout = str(getattr(value, "layout", "torch.strided"))
        if value.is_meta or value.is_quantized or layout != "torch.strided":
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else layout
            raise CheckpointFormatError(
                f"{path}: tensor {name!r} is {kind}; expected plain values "
                "(materialise, dequantise or densify it first)"
            )
        dtype = _dtype(str(value.dtype), name, path)
    return TensorSpec(name, dtype, shape)


def _dtype(text: str, name: str, path: str) -> DType:
    try:
        return parse_dtype(text)
    except ValueError:
        raise CheckpointFormatError(
            f"{path}: tensor {name!r} has dtype {text}, which no checkpoint format here holds"
        ) from None


def _tied(tensors: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    groups: dict[object, list[str]] = {}
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            interface = value.__array_interface__
            where: object = (interface["data"], value.strides, value.shape, value.dtype.str)
            empty = value.size == 0
        else:
            where = (
                str(value.device), value.data_ptr(), value.stride(), value.shape, value.dtype,
                value.is_conj(), value.is_neg(),
            )  # fmt: skip
            empty = value.numel() == 0
        if not empty:
            groups.setdefault(where, []).append(name)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))
