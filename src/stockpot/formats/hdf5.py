"""HDF5 files of Keras (`.weights.h5`, `.h5`) and its archives (`.keras`).

The HDF5 library finds where the values lie; they are mapped, and read by it only where they are
compressed. It is handed a window on the bytes of one file, so that links and external storage
lead nowhere. An output is the file of an ingredient with other values: Keras loads it as it does
that one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot._optional import require
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.base import stored
from stockpot.formats.format import Format
from stockpot.formats.mapped import Run, RunsCheckpoint, joined
from stockpot.formats.output import OutputPlan, OutputRequest, PlannedFile
from stockpot.formats.zipped import BadArchiveError, Member, directory, locate
from stockpot.io.storage import MappedFile, MappedRange
from stockpot.tensors.spec import DType, TensorSpec, parse_dtype

MAX_ENTRIES = 30_000
"""Groups and datasets that any file may have; a model has one for each tensor and layer."""
BYTES_PER_ENTRY = 4096
"""A larger file may have one more for so many bytes: the library takes long to list them."""

_MAX_DEPTH = 64
_MAX_RATIO = 1032
_BLOCK_BYTES = 4 << 20
_WEIGHTS = "model.weights.h5"
_OPTIMISER = ("optimizer", "optimizer_weights", "_optimizer")
_MAGIC = b"\x89HDF\r\n\x1a\n"


class _Window(io.RawIOBase):
    """Bytes as a file that is only read; it has state because files have a position."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._data.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._data[self._at : self._at + len(buffer)]
        memoryview(buffer)[: found.size] = found.data
        self._at += found.size
        return int(found.size)


@dataclass(frozen=True, slots=True)
class _Archive:
    """The archive of Keras that the file is a member of, and where the member begins."""

    file: MappedFile
    member: Member
    at: int


class HDF5File(RunsCheckpoint):
    """The datasets of an HDF5 file, but for those of an optimiser."""

    format = "hdf5"

    def __init__(self, file: MappedFile, archive: _Archive | None = None) -> None:
        h5py = require("h5py")
        self._file, self._archive = file, archive
        try:
            with h5py.File(_Window(file.bytes()), "r") as opened:
                found = [
                    (path, None if path[0] in _OPTIMISER else _read(file, "/".join(path), dataset))
                    for path, dataset in _datasets(h5py, opened, file.size)
                ]
            kept = [(path, one) for path, one in found if one is not None]
            names, _ = joined([path for path, _ in kept])
            listed = [(n, p, *one) for n, (p, one) in zip(names, kept, strict=True)]
            specs = {n: replace(spec, name=n) for n, _, spec, _ in listed if spec is not None}
            runs = {n: () if run is None else (run,) for n, _, _, run in listed if n in specs}
            self._chunked = {
                n: "/".join(p) for n, p, _, run in listed if n in specs and run is None
            }
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointFormatError(f"{file.path} is no valid HDF5 file: {error}") from None
        if not specs:
            raise CheckpointFormatError(f"{file.path} holds no tensors")
        self._runs: Mapping[str, Sequence[Run]] = runs
        self.computed = bool(self._chunked)
        others = [n for n in names if n not in specs]
        notes = [f"left out, not tensors: {', '.join(others[:10])}"] if others else []
        if len(kept) < len(found):
            notes.append(f"left out, of the optimiser: {len(found) - len(kept)} tensors")
        super().__init__(file.path, specs, notes=tuple(notes), files=(file.id,))

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`; all of it is unpacked if it is compressed.

        Raises:
            CheckpointFormatError: its compressed bytes are damaged.
        """
        place = self._chunked.get(name)
        if place is None:
            return super().part(name, start, stop)
        try:
            with require("h5py").File(_Window(self._file.bytes()), "r") as opened:
                values = np.ascontiguousarray(opened[place][()])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointFormatError(f"{self.path}: {name[:200]!a}: {error}") from None
        raw: npt.NDArray[np.uint8] = values.reshape(-1).view(np.uint8)[start:stop]
        return raw

    def template(self, name: str, specs: Mapping[str, TensorSpec]) -> _Template:
        """This file, and the archive that it may lie in, for other values in the output `name`.

        Raises:
            CheckpointError: the output holds other tensors, or some are stored compressed.
        """
        if dict(specs) != dict(self) or self._chunked:
            why = "compressed" if self._chunked else "of other names, shapes or types"
            raise CheckpointError(
                f"{name}: it is written as {self.path} with other values, and tensors there are "
                f"{why}; write .safetensors or .npz"
            )
        shift, whole, summed = 0, self._file, list[tuple[int, int, tuple[int, ...]]]()
        if self._archive is not None:
            whole, member, shift = self._archive.file, self._archive.member, self._archive.at
            summed = [(shift, shift + member.size, member.checksums_at)]
        at, kept = 0, list[tuple[int, int]]()
        offsets = {n: run[0].at + shift for n, run in self._runs.items() if run[0].n_bytes}
        for tensor in sorted(offsets, key=offsets.__getitem__):
            begin = offsets[tensor]
            if begin < at:
                raise CheckpointError(f"{name}: tensors of {self.path} lie on each other")
            kept.append((at, begin))
            at = begin + self[tensor].nbytes
        kept.append((at, whole.size))
        return _Template(whole, offsets, tuple(kept), tuple(summed))


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    """A file whose tensors get other values; an optimiser's state in it may be of any size.

    Attributes:
        file: as it is on the disk.
        offsets: first byte of each tensor.
        kept: first and last byte of what stays: before, between and behind the tensors.
        summed: as in `PlannedFile`.
    """

    file: MappedFile
    offsets: Mapping[str, int]
    kept: tuple[tuple[int, int], ...]
    summed: tuple[tuple[int, int, tuple[int, ...]], ...]

    def planned(self, name: str) -> PlannedFile:
        """The plan of an output; what stays is mapped, not held."""
        data = self.file.bytes()
        fixed = tuple(
            (at, data[at : min(at + _BLOCK_BYTES, end)].data)
            for begin, end in self.kept
            for at in range(begin, end, _BLOCK_BYTES)
        )
        return PlannedFile(name, self.file.size, self.offsets, fixed, summed=self.summed)


def _order(one: _Template, other: _Template) -> int:
    """Negative where what stays of `one` comes first, by its places and then its bytes.

    Read in blocks, up to the first that differs.
    """
    a, b = one.file.bytes(), other.file.bytes()
    for (begin, end), (start, stop) in zip(one.kept, other.kept, strict=False):
        if begin != start:
            return begin - start
        for at in range(begin, max(end, stop), _BLOCK_BYTES):
            x = a[at : min(at + _BLOCK_BYTES, end)].tobytes()
            y = b[at : min(at + _BLOCK_BYTES, stop)].tobytes()
            if x != y:
                return -1 if x < y else 1
    return len(one.kept) - len(other.kept)


def _read(file: MappedFile, name: str, dataset: Any) -> tuple[TensorSpec | None, Run | None]:
    """What a dataset is, None for no tensor, and where it lies, None where that is in chunks."""
    spec = _spec(name, dataset)
    return spec, None if spec is None else _run(file, dataset, spec)


def _datasets(h5py: Any, group: Any, n_bytes: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dataset that is reached by hard links, each once, by its path."""
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), group)]
    n_entries, most = 0, MAX_ENTRIES + n_bytes // BYTES_PER_ENTRY
    while pending:
        path, place = pending.pop()
        if len(path) > _MAX_DEPTH:
            raise ValueError("groups are nested too deeply")
        for name in place:
            n_entries += 1
            if n_entries > most:
                raise ValueError(f"it has more than {most} entries in {n_bytes} bytes")
            if not isinstance(place.get(name, getlink=True), h5py.HardLink):
                continue
            child = place[name]
            # A group that links to itself would never end.
            address = h5py.h5o.get_info(child.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(child, h5py.Group):
                pending.append(((*path, name), child))
            elif isinstance(child, h5py.Dataset):
                yield (*path, name), child


def _spec(name: str, dataset: Any) -> TensorSpec | None:
    """None for texts and objects, and for what holds nothing."""
    if dataset.shape is None or dataset.dtype.kind in "OSU":
        return None
    dtype = dataset.dtype
    if dtype.kind == "V" and dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
        return TensorSpec(name, DType.BF16, dataset.shape)
    if dtype.kind not in "biufc" or dtype != dtype.newbyteorder("<"):
        raise ValueError(f"{name[:200]!a} has the type {dtype}, expected little-endian numbers")
    return TensorSpec(name, parse_dtype(dtype.name), dataset.shape)


def _run(file: MappedFile, dataset: Any, spec: TensorSpec) -> Run | None:
    """Where the values lie, in one piece; None where they are in chunks."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the values of {spec.name[:200]!a} lie in other files")
    at = dataset.id.get_offset()
    if spec.nbytes == 0 or (at is not None and at + spec.nbytes <= file.size):
        return Run(file, at or 0, spec.nbytes)
    if spec.nbytes > _MAX_RATIO * max(dataset.id.get_storage_size(), 1 << 16):
        raise ValueError(f"{spec.name[:200]!a} claims more than its stored bytes can hold")
    return None


class HDF5(Format):
    """What Keras's `save_weights` writes, and its older whole models."""

    name = "hdf5"
    summary = "an HDF5 file of Keras (needs h5py: `stockpot[formats]`)"
    suffixes: tuple[str, ...] = (".weights.h5", ".h5", ".hdf5")
    in_folders: tuple[str, ...] = ("model.weights.h5", "tf_model.h5")
    writes = True
    kept_in_folders = True
    side_files = "all that an ingredient's file holds beside the weights"
    remedy = "written where an ingredient is such a file, its tensors not compressed"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its signature, or by its suffix."""
        return head.startswith(_MAGIC) or path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> HDF5File:
        """The file's datasets; `key` means nothing here.

        Raises:
            OptionalDependencyError: h5py is not installed.
        """
        return HDF5File(MappedFile(path))

    def plan(self, request: OutputRequest) -> OutputPlan:
        """The file of an ingredient with other values: of those that differ always the same one."""
        sources = [stored(one) for one in (*request.inputs, request.like) if one is not None]
        found = [one for one in sources if isinstance(one, HDF5File) and one.format == self.name]
        if not found:
            raise CheckpointError(
                f"{request.path}: what Keras keeps beside the weights is not made here, and no "
                "ingredient is such a file; write .safetensors or .npz"
            )
        name = Path(request.path).name
        templates = [one.template(name, request.specs) for one in found]
        file = min(templates, key=cmp_to_key(_order)).planned(name)
        kept = any("optimiser" in note for note in found[0].notes)
        notes = ("the optimiser's state in it is that of an ingredient",) if kept else ()
        return OutputPlan(request=request, format=self.name, files=(file,), notes=notes)


class Keras(HDF5):
    """What `model.save` of Keras 3 writes: a zip archive with an HDF5 file in it."""

    name = "keras"
    summary = "an archive of Keras (needs h5py: `stockpot[formats]`)"
    suffixes = (".keras",)
    in_folders = ()

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its suffix: its beginning is that of any archive."""
        return path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> HDF5File:
        """The datasets of the file with the weights; `key` means nothing here."""
        file = MappedFile(path)
        try:
            member = directory(file.bytes()).get(_WEIGHTS)
            if member is None:
                raise BadArchiveError(f"it holds no {_WEIGHTS}")
            at = locate(file.bytes(), member)
        except BadArchiveError as reason:
            raise CheckpointFormatError(f"{path} is no valid archive of Keras: {reason}") from None
        found = HDF5File(MappedRange(file, at, member.size), _Archive(file, member, at))
        found.format = self.name
        return found
