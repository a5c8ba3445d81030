"""Folders of distributed training: torch's are read, others named with the way to convert.

torch.distributed.checkpoint (FSDP, torchtitan, Lightning's FSDP strategy) writes a folder:
`.metadata` is a pickle that says which tensors there are, of which chunks each is made, and where
each chunk lies in the `*.distcp` files, as a little file of `torch.save`. The pickle is read as
data, as every other one; tensors are put together from their chunks piece by piece.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format
from stockpot.formats.pickle_values import (
    Global,
    MalformedPickleError,
    Placeholder,
    StorageRef,
    StoredTensor,
)
from stockpot.formats.pickled import load
from stockpot.formats.sections import choose_section, note_of_others
from stockpot.formats.torchfile import only_tensor
from stockpot.io.storage import MappedFile, stays_inside
from stockpot.tensors.spec import TensorSpec, of_torch_name

MAX_METADATA_BYTES = 1 << 28
"""Longest `.metadata` that is read; a chunk takes about 200 bytes in it."""

_METADATA = ".metadata"
_MAX_PARTS = 64
_COMPARISONS_PER_CHUNK = 4096
_OF_MODEL = ("pytorch_model_fsdp_0", "weights")
"""Where accelerate (transformers' Trainer) and NeMo 2 keep the model in a checkpoint's folder."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A block of a tensor: where it begins and ends in it, and where its little file lies."""

    begin: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    at: int
    length: int


class DistributedCheckpoint(Checkpoint):
    """A folder of torch.distributed.checkpoint, tensors assembled from their chunks."""

    format = "torch-distributed"

    def __init__(self, folder: Path, *, key: str | None = None) -> None:
        metadata = MappedFile(folder / _METADATA)
        try:
            tensors, chunks = _parse(metadata)
        except (MalformedPickleError, _DamagedError) as reason:
            raise CheckpointFormatError(
                f"{folder} is no valid folder of torch.distributed.checkpoint: {reason}"
            ) from None
        section, place, ignored = choose_section(_nested(tensors), os.fspath(folder), key)
        named = {n: v.storage.key for n, v in section.items() if isinstance(v, StoredTensor)}
        self._chunks = {name: chunks[full] for name, full in named.items()}
        self._files = _open_files(folder, self._chunks)
        notes = [note_of_others(place, ignored)] if ignored else []
        if place and not ignored:
            notes.append(f"the tensors are those of its section {place!r}")
        super().__init__(
            os.fspath(folder),
            {name: TensorSpec(name, *tensors[full][:2]) for name, full in named.items()},
            notes=tuple(notes),
            files=(metadata.id, *(file.id for file in self._files.values())),
            section=place,
        )
        for name, spec in self.items():
            try:
                covered = _is_covered(spec.shape, self._chunks[name])
            except _DamagedError as reason:
                raise CheckpointFormatError(f"{folder}: tensor {name[:200]!a}: {reason}") from None
            if not covered:
                raise CheckpointFormatError(
                    f"{folder}: the chunks of tensor {name[:200]!a} do not fill its shape "
                    f"{spec.shape}; was the run that wrote it killed?"
                )

    def scattered(self, name: str) -> bool:
        """Whether it is made of several chunks."""
        self[name]
        return len(self._chunks[name]) != 1

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`: mapped if it is one chunk, else assembled."""
        raw = self.part(name, 0, self[name].nbytes)
        raw.flags.writeable = False
        return raw

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`, of the rows that they are in.

        Raises:
            CheckpointFormatError: a chunk is not what `.metadata` says of it.
        """
        spec = self[name]
        if spec.numel == 0 or start >= stop:
            return np.zeros(0, np.uint8)
        shape = spec.shape or (1,)
        row = spec.nbytes // shape[0]
        first, last = start // row, -(-stop // row)
        chunks = self._chunks[name]
        if len(chunks) == 1:
            rows = self._elements(spec, chunks[0]).reshape(shape)[first:last]
        else:
            rows = np.empty((last - first, *shape[1:]), f"V{spec.dtype.bits // 8}")
            for chunk in chunks:
                self._put(spec, chunk, rows, first)
        flat = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        return flat[start - first * row : stop - first * row]

    def _put(self, spec: TensorSpec, chunk: _Chunk, rows: npt.NDArray[np.void], first: int) -> None:
        """Put what `chunk` has of the rows from `first` on into them."""
        begin = max(first, chunk.begin[0])
        end = min(first + len(rows), chunk.begin[0] + chunk.sizes[0])
        if begin < end:
            across = tuple(
                slice(b, b + n) for b, n in zip(chunk.begin[1:], chunk.sizes[1:], strict=True)
            )
            values = self._elements(spec, chunk)[begin - chunk.begin[0] : end - chunk.begin[0]]
            rows[(slice(begin - first, end - first), *across)] = values

    def _elements(self, spec: TensorSpec, chunk: _Chunk) -> npt.NDArray[np.void]:
        data = self._files[chunk.file].bytes()
        piece = TensorSpec(spec.name, spec.dtype, chunk.sizes)
        if chunk.at + chunk.length > data.size:
            raise CheckpointFormatError(f"{self.path}: {chunk.file} is cut off")
        return only_tensor(data[chunk.at : chunk.at + chunk.length], piece, self.path)


class _DamagedError(Exception):
    """Why a folder is not valid; the caller knows which."""


_Tensors = dict[str, tuple[Any, tuple[int, ...], tuple[str, ...]]]


def _parse(file: MappedFile) -> tuple[_Tensors, dict[str, list[_Chunk]]]:
    """By full name: dtype, shape and path of every tensor, and its chunks."""
    if file.size > MAX_METADATA_BYTES:
        raise _DamagedError(f".metadata has {file.size} bytes; at most {MAX_METADATA_BYTES}")
    root, _, _ = load(file.bytes().data)
    fields = _fields(root, "Metadata")
    described, places = fields.get("state_dict_metadata"), fields.get("storage_data")
    paths = fields.get("planner_data")
    if not isinstance(described, dict) or not isinstance(places, dict):
        raise _DamagedError("its .metadata lacks the tensors or their places")
    tensors: _Tensors = {}
    chunks: dict[str, list[_Chunk]] = {}
    for name, about in described.items():
        if not isinstance(about, Placeholder) or not about.origin.endswith(
            ".TensorStorageMetadata"
        ):
            continue  # bytes: an epoch, a learning rate
        if not isinstance(name, str):
            raise _DamagedError("a tensor has no name")
        own = _fields(about, "TensorStorageMetadata")
        path = paths.get(name) if isinstance(paths, dict) else None
        # One path can be that of every name, at a few bytes each.
        if isinstance(path, tuple) and len(path) > _MAX_PARTS:
            raise _DamagedError(f"a tensor lies {len(path)} levels deep, at most {_MAX_PARTS}")
        known = isinstance(path, tuple) and all(isinstance(part, str | int) for part in path)
        where = tuple(str(part) for part in path or ()) if known else ()
        tensors[name] = (_dtype(own, name), _sizes(own.get("size")), where or (name,))
        chunks[name] = []
    for key, info in places.items():
        index, stored = _fields(key, "MetadataIndex"), _fields(info, "_StorageInfo")
        name = index.get("fqn")
        if isinstance(name, str) and name in tensors:
            chunks[name].append(_chunk(described[name], index, stored))
    return tensors, chunks


def _fields(value: object, kind: str) -> Mapping[Any, Any]:
    """The attributes of a pickled object of class `kind`."""
    if isinstance(value, Placeholder) and value.origin == "a key" and value.parts:
        value = value.parts[0]
    if (
        isinstance(value, Placeholder)
        and value.origin.endswith("." + kind)
        and len(value.parts) > 1
    ):
        state = value.parts[-1]
        if isinstance(state, dict):
            return state
    raise _DamagedError(f"its .metadata holds no {kind} where one is expected")


def _dtype(own: Mapping[Any, Any], name: str) -> Any:
    properties = own.get("properties")
    state = properties.parts[-1] if isinstance(properties, Placeholder) and properties.parts else ()
    if isinstance(state, dict):
        state = (state.get("dtype"),)
    found = state[0] if isinstance(state, tuple) and state else None
    dtype = of_torch_name(found.name) if isinstance(found, Global) else None
    if dtype is None:
        raise _DamagedError(f"tensor {name[:200]!a} has a type that is not supported")
    return dtype


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 64:
        raise _DamagedError("a shape is no tuple")
    if not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise _DamagedError("a shape holds what is no size")
    return value


def _chunk(about: Any, index: Mapping[Any, Any], stored: Mapping[Any, Any]) -> _Chunk:
    begin = index.get("offset")
    listed = _fields(about, "TensorStorageMetadata").get("chunks")
    number = index.get("index")
    if not isinstance(listed, list) or type(number) is not int or not 0 <= number < len(listed):
        number = 0
    if not isinstance(listed, list) or not listed:
        raise _DamagedError("a tensor has no chunks")
    own = _fields(listed[number], "ChunkStorageMetadata")
    offsets, sizes = _sizes(own.get("offsets")), _sizes(own.get("sizes"))
    file, at, length = (stored.get(k) for k in ("relative_path", "offset", "length"))
    if begin is not None and begin != offsets:
        raise _DamagedError("a chunk is at two places of its tensor")
    if not isinstance(file, str) or type(at) is not int or type(length) is not int:
        raise _DamagedError("a chunk has no place")
    if min(at, length) < 0 or stored.get("transform_descriptors"):
        raise _DamagedError("a chunk is compressed or encrypted, or lies before its file")
    # A scalar is a chunk of no dimension; here it has one.
    return _Chunk(offsets or (0,), sizes or (1,), file, at, length)


def _nested(tensors: _Tensors) -> dict[str, Any]:
    """The state dict as it was saved: dictionaries by the paths of the tensors in it."""
    root: dict[str, Any] = {}
    for name, (dtype, shape, path) in tensors.items():
        place = root
        for part in path[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise CheckpointFormatError(f"tensor {name[:200]!a} lies within a tensor")
            place = inner
        reference = StorageRef(name, dtype, 0)
        place[path[-1]] = StoredTensor(reference, dtype, 0, shape, ())
    return root


def _open_files(folder: Path, chunks: Mapping[str, Sequence[_Chunk]]) -> dict[str, MappedFile]:
    names = sorted({chunk.file for one in chunks.values() for chunk in one})
    for name in names:
        if "\0" in name or not stays_inside(folder / name, folder):
            raise CheckpointFormatError(f"{folder} puts chunks in {name[:200]!a}, outside of it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointFormatError(
            f"{folder} lacks {len(missing)} of {len(names)} files: {', '.join(missing[:5])}; copy "
            "them from every machine that wrote the checkpoint"
        )
    return {name: MappedFile(folder / name) for name in names}


def _is_covered(shape: tuple[int, ...], chunks: Sequence[_Chunk]) -> bool:
    """Whether the chunks lie in the tensor, fill it, and none lies on another."""
    whole = shape or (1,)
    total = 0
    for chunk in chunks:
        if len(chunk.begin) != len(whole) or len(chunk.sizes) != len(whole):
            return False
        ends = zip(chunk.begin, chunk.sizes, whole, strict=True)
        if any(begin + size > n for begin, size, n in ends):
            return False
        total += math.prod(chunk.sizes)
    if total != math.prod(whole):
        return False
    filled = [chunk for chunk in chunks if 0 not in chunk.sizes]
    if len({chunk.begin for chunk in filled}) < len(filled):
        return False
    return _is_grid(filled) or not _any_overlap(filled)


def _is_grid(chunks: Sequence[_Chunk]) -> bool:
    """Whether the chunks, none of which begin alike, are cells between cuts along every dimension.

    Such cells have no element in common; nearly all tensors are cut so.
    """
    for axis in range(len(chunks[0].begin)) if chunks else ():
        sizes: dict[int, int] = {}
        if any(
            sizes.setdefault(chunk.begin[axis], chunk.sizes[axis]) != chunk.sizes[axis]
            for chunk in chunks
        ):
            return False
        cuts = sorted(sizes)
        if any(a + sizes[a] > b for a, b in pairwise(cuts)):
            return False
    return True


def _any_overlap(chunks: Sequence[_Chunk]) -> bool:
    """Whether any two of the chunks, none of them empty, have an element in common.

    They are swept along the dimension in which the fewest of them meet.

    Raises:
        _DamagedError: so many meet in every dimension that it would take too long to say.
    """
    begins = np.array([chunk.begin for chunk in chunks], np.int64)
    ends = begins + np.array([chunk.sizes for chunk in chunks], np.int64)
    sweeps = [_Sweep.of(begins[:, axis], ends[:, axis]) for axis in range(begins.shape[1])]
    best = min(sweeps, key=lambda sweep: sweep.n_pairs)
    if best.n_pairs * begins.shape[1] > _COMPARISONS_PER_CHUNK * len(chunks):
        raise _DamagedError(
            f"its {len(chunks)} chunks are cut so unevenly that it cannot be said in "
            "time whether they overlap"
        )
    begins, ends = begins[best.order], ends[best.order]
    for i in np.flatnonzero(best.stops > np.arange(1, len(chunks) + 1)):
        others = slice(i + 1, best.stops[i])
        if ((begins[others] < ends[i]) & (begins[i] < ends[others])).all(axis=1).any():
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Intervals in the order of their begins.

    Attributes:
        order: their indices.
        stops: behind the last of those that begin before each ends, in this order.
        n_pairs: how many pairs meet.
    """

    order: npt.NDArray[np.intp]
    stops: npt.NDArray[np.intp]
    n_pairs: int

    @classmethod
    def of(cls, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> _Sweep:
        """The sweep of intervals that are not empty."""
        order = np.argsort(begins, kind="stable")
        stops = np.searchsorted(begins[order], ends[order], side="left")
        return cls(order, stops, int(stops.sum()) - len(begins) * (len(begins) + 1) // 2)


class TorchDistributed(Format):
    """What torch.distributed.checkpoint (DCP) writes."""

    name = "torch-distributed"
    summary = "a folder of torch.distributed.checkpoint (FSDP, torchtitan, Lightning's FSDP)"
    suffixes = (".distcp",)
    is_folder = True
    remedy = (
        "outputs are safetensors or torch files; a folder of sharded optimiser states too is "
        "converted by python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    )

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its `.metadata`, which accelerate puts into a folder for the model."""
        return any((path / inner / _METADATA).is_file() for inner in ("", *_OF_MODEL))

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The tensors of the section `key`, or of the one that can be meant."""
        places = [path / inner for inner in ("", *_OF_MODEL)]
        return DistributedCheckpoint(
            next(place for place in places if (place / _METADATA).is_file()), key=key
        )


class ModelParallel(Format):
    """Files of the ranks of one model: parts of it, which must not be averaged with each other."""

    name = "model-parallel"
    summary = "a folder with the ranks of one model (tensor, pipeline parallel, FSDP)"
    is_folder = True
    reads = False
    remedy = (
        "its files are parts of one model and no ingredients: put them together first (Megatron: "
        "tools/checkpoint/convert.py; Llama: convert_llama_weights_to_hf.py; FSDP: save the full "
        "state dict)"
    )

    def recognises(self, path: Path, head: bytes) -> bool:
        """By two files or folders whose names differ in the number of a rank alone."""
        ranks: dict[tuple[str, str], set[str]] = {}
        for entry in os.scandir(path):
            if _PIPELINE.search(entry.name):
                ranks.setdefault(("", ""), set()).add(entry.name)
            match = _RANK.fullmatch(entry.name)
            if match is not None:
                ranks.setdefault((match[1], match[3]), set()).add(match[2])
        return any(len(numbers) > 1 for numbers in ranks.values())

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """Always raises CheckpointFormatError, with the way to convert it."""
        raise CheckpointFormatError(f"{path} is {self.summary}: {self.remedy}")


_PIPELINE = re.compile(
    r"^mp_rank_\d+_\d+|(^|[._-])tp_?\d+[._-]pp_?\d+([._-]|$)|^layer_\d+-model_.*model_states\.pt$"
)
"""Names with the numbers of two kinds of ranks, and layers that DeepSpeed's pipeline writes."""
_RANK = re.compile(r"(consolidated\.|(?:.*[._-])?(?:mp_|tp_|pp_)?rank[._-]?)(\d+)((?:[._-].*)?)")
