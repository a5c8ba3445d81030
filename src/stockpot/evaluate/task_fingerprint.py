"""What a split contains, as a hash, so that scores of other data are never reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stockpot.errors import EvaluationError

if TYPE_CHECKING:
    import xxhash
    from torch.utils.data import Dataset

    from stockpot.evaluate.task import Split


MAX_HASHED = 20_000


@dataclass(frozen=True, slots=True)
class SplitFingerprint:
    """`value` identifies the examples; `note` says when only a part of them was hashed."""

    value: str
    note: str | None = None


def split_fingerprint(split: Split, *, max_hashed: int = MAX_HASHED) -> SplitFingerprint:
    """The fingerprint that was given, else the data set's own, else a hash of its examples."""
    if split.fingerprint is not None:
        return SplitFingerprint(split.fingerprint)
    return dataset_fingerprint(split.dataset, max_hashed=max_hashed)


def dataset_fingerprint(dataset: Dataset[Any], *, max_hashed: int = MAX_HASHED) -> SplitFingerprint:
    """XXH3-128 of the examples in order: 32 hex digits; or the set's own `fingerprint`.

    Of a set larger than `max_hashed`, that many evenly spaced examples and the length are hashed,
    and the note says so: a change elsewhere is not seen.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> len(dataset_fingerprint(TensorDataset(torch.zeros(3, 2))).value)
    32

    Raises:
        EvaluationError: the examples hold something that cannot be hashed by content.
    """
    import numpy as np
    import xxhash

    for attribute in ("fingerprint", "_fingerprint"):
        own = getattr(dataset, attribute, None)
        if isinstance(own, str):
            return SplitFingerprint(own)
    n = len(dataset)  # type: ignore[arg-type]
    hashed = n if n <= max_hashed else max_hashed
    state = xxhash.xxh3_128(f"{n} examples".encode())
    for i in np.linspace(0, n - 1, hashed).round().astype(int).tolist():
        _update(state, dataset[i])
    note = None
    if hashed < n:
        note = (
            f"fingerprint made from {hashed} of {n} examples; give the split a fingerprint "
            "if others may change"
        )
    return SplitFingerprint(state.hexdigest(), note)


def _update(state: xxhash.xxh3_128, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"{value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy() if value.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        state.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    elif isinstance(value, str | bytes | int | float | bool | type(None)):
        state.update(f"{type(value).__name__} {value!r}".encode())
    elif isinstance(value, Mapping):
        state.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=str):
            _update(state, str(key))
            _update(state, value[key])
    elif isinstance(value, list | tuple):
        state.update(f"sequence {len(value)}".encode())
        for item in value:
            _update(state, item)
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # a PIL image
        state.update(f"image {value.mode} {value.size}".encode() + value.tobytes())
    else:
        raise EvaluationError(
            f"examples hold a {type(value).__qualname__}, which cannot be hashed; give the split "
            "a fingerprint (Split(..., fingerprint=...)) that changes when its data do"
        )
