"""The one interface through which everything reads weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.errors import TensorNotFoundError
from stockpot.io.storage import FileId
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    import torch


class Checkpoint(Mapping[str, TensorSpec], ABC):
    """Specs by name, and values on request.

    Opening reads headers only, and so does `checkpoint["w"]`, which is a `TensorSpec`; the disk is
    touched by `read("w")` and `raw("w")`. A reader of another format implements `raw` and hands its
    specs to `__init__`: see `stockpot.testing` for the suite that it has to pass.

    Attributes:
        path: where it was opened, as given; `"<memory>"` for a state dict.
        format: `"safetensors"`, `"safetensors-sharded"`, `"torch"`, `"torch-sharded"`, `"memory"`.
        metadata: text that the file carries beside the tensors.
        tied: groups of names that are one tensor (shared storage); each group sorted, len ≥ 2.
            Every name of a group is in the mapping and reads the same values.
        notes: what a person should know of how it was read (a prefix removed, a section chosen,
            classes that became placeholders), one sentence each.
        files: the files it was read from, as they were then; none for a state dict.
        section: where in a torch file the tensors lie (`"state_dict"`), empty at its top.
        computed: whether `raw` makes values in memory of its own; whoever streams has to allow for
            a whole tensor then.
    """

    format: str = "unknown"
    computed: bool = False

    def __init__(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        *,
        metadata: Mapping[str, str] | None = None,
        tied: tuple[tuple[str, ...], ...] = (),
        notes: tuple[str, ...] = (),
        files: tuple[FileId, ...] = (),
        section: str = "",
    ) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.tied = tied
        self.notes = notes
        self.files = files
        self.section = section
        self._fingerprint: str | None = None
        self._specs = dict(specs)

    def __getitem__(self, name: str) -> TensorSpec:
        try:
            return self._specs[name]
        except KeyError:
            raise TensorNotFoundError(name, self.path) from None

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    # A checkpoint is compared and hashed by identity: equality of content is its fingerprint's job.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}: {len(self)} tensors>"

    @abstractmethod
    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`: one dimension, row-major, little-endian, read-only.

        Mapped from the file where the format allows it, so that a slice touches only its own pages.

        Raises:
            TensorNotFoundError: no such tensor.
        """

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor holding the values of `name`, in the stored dtype and shape."""
        from stockpot.tensors._torch import tensor_from_raw

        return tensor_from_raw(self[name], self.raw(name))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        repeated = {name for group in self.tied for name in group[1:]}
        return sum(spec.nbytes for name, spec in self._specs.items() if name not in repeated)

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors, tied ones once."""
        repeated = {name for group in self.tied for name in group[1:]}
        return sum(spec.numel for name, spec in self._specs.items() if name not in repeated)

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of names, dtypes, shapes and values, as 32 hex digits (METHODS: Fingerprints).

        Made on first use, from one pass over the file, and cached on disk while the file does not
        change. Independent of the order of tensors, of shards and of the container format.
        """
        from stockpot.formats.fingerprint import fingerprint

        if not self.files:  # values in memory may change
            return fingerprint(self)
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self)
        return self._fingerprint
