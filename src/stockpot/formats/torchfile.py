"""Files of `torch.save`, read without torch: tensors are ranges of the file, nothing is executed.

Since torch 1.6 the file is a zip archive, `<name>/data.pkl` with the structure and
`<name>/data/<key>` with the bytes of each storage, stored and not compressed. Before, it was five
pickles (magic number, version, platform, structure, storage keys) and then the storages. Both are
mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError, UnsafeCheckpointError
from stockpot.formats import torchwriter
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format
from stockpot.formats.mapped import Elements, Place, Run, StridedCheckpoint
from stockpot.formats.output import OutputPlan, OutputRequest
from stockpot.formats.pickle_values import (
    Global,
    MalformedPickleError,
    StorageRef,
    StoredTensor,
)
from stockpot.formats.pickled import load
from stockpot.formats.sections import (
    Parts,
    choose_section,
    note_of_others,
    prefix_of,
    split_section,
)
from stockpot.formats.toolkits import Surroundings, surroundings_of
from stockpot.formats.zipped import BadArchiveError, Member, directory, locate
from stockpot.io.storage import MappedFile
from stockpot.tensors.spec import DType, TensorSpec, of_torch_storage

MAX_PICKLE_BYTES = 1 << 30
"""Longest `data.pkl` that is read; a tensor takes about 150 bytes in it."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_FREE_BYTES = 16 << 20
_UNTYPED = ("UntypedStorage", "_UntypedStorage")


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a file holds: the pickled value, and where its storages lie.

    `place` gives start and length, in bytes, of the storage with a key; it raises
    `BadArchiveError` where that is no valid range of the file.
    """

    root: object
    unknown: tuple[str, ...]
    place: Callable[[StorageRef], tuple[int, int]]


def open_torch(path: StrPath, *, key: str | None = None) -> Checkpoint:
    """The checkpoint in a file of `torch.save`: zip archives, and the format before torch 1.6.

    Args:
        key: the section that holds the tensors, dotted.

    Raises:
        CheckpointFormatError: it is damaged, no file of `torch.save`, or several sections could be
            meant.
        UnsafeCheckpointError: a tensor can only be had by running code from the file.
    """
    return read_torch(MappedFile(path), key=key)


def read_torch(file: MappedFile, *, key: str | None = None) -> TorchFile:
    """As `open_torch`, of a file that is mapped: its bytes may be a part of another."""
    name, contents = file.path, _checked_contents(file)
    section, place, ignored = choose_section(contents.root, name, key)
    whole = section if isinstance(section, Parts) else None
    tensors, others = split_section(section, name)
    notes = []
    if ignored:
        notes.append(note_of_others(place, ignored))
    elif whole is not None:
        listed = ", ".join(repr(part[:200]) for part in whole.parts)
        notes.append(f"its sections {listed} are taken for parts of one model")
    elif place:
        notes.append(f"the tensors are those of its section {place!r}")
    if others:
        notes.append(f"left out, not tensors: {shortened(others)}")
    if contents.unknown:
        notes.append(f"classes that were not loaded: {shortened(contents.unknown)}")
    return TorchFile(name, file, tensors, contents, notes, section=place)


class TorchValue:
    """What a file of `torch.save` holds, however it is nested.

    Attributes:
        file: the file.
        root: its value: dictionaries, lists, plain values, `StoredTensor` and `Placeholder`.

    Raises:
        CheckpointFormatError: as `open_torch`.
        UnsafeCheckpointError: as `open_torch`.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self._contents = _checked_contents(file)
        self.root: Any = self._contents.root

    def tensor(self, name: str, value: StoredTensor) -> tuple[TensorSpec, tuple[Run, ...]]:
        """What a tensor in it is, called `name`, and where its bytes lie in one run.

        Raises:
            CheckpointFormatError: it is damaged, or its elements do not lie in order.
        """
        try:
            spec = _checked_spec(name, value)
            place = _checked_place(value, spec, self._contents, self.file.size)
            if spec.numel and not place.is_contiguous(spec.dtype.bits // 8):
                raise BadArchiveError("its elements do not lie in order")
        except BadArchiveError as reason:
            raise CheckpointFormatError(
                f"{self.file.path}: tensor {name[:200]!a}: {reason}"
            ) from None
        return spec, (Run(self.file, place.at, spec.nbytes),)


def _checked_contents(file: MappedFile) -> _Contents:
    try:
        return _contents(file.bytes())
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{file.path}: {error}") from None
    except (BadArchiveError, MalformedPickleError) as reason:
        raise CheckpointFormatError(
            f"{file.path} is not a valid torch checkpoint: {reason}"
        ) from None


def shortened(names: Sequence[str]) -> str:
    """The first ten of `names` for a note, each cut to 200 characters, and how many there are."""
    shown = ", ".join(ascii(name)[1:-1][:200] for name in names[:10])
    return f"{shown}, ... ({len(names)} in all)" if names[10:] else shown


def _contents(data: npt.NDArray[np.uint8]) -> _Contents:
    head = data[:512].tobytes()
    if head.startswith(_ZIP):
        return _zip_contents(data)
    if head[257:262] == b"ustar":
        raise BadArchiveError(
            "it is a tar archive of torch 0.1; load it with torch and save it again"
        )
    if head.startswith(_PICKLE):
        return _legacy_contents(data)
    raise BadArchiveError("it begins neither as a zip archive nor as a pickle")


def _zip_contents(data: npt.NDArray[np.uint8]) -> _Contents:
    members = directory(data)
    root = _root(members)
    if f"{root}/constants.pkl" in members:
        raise UnsafeCheckpointError(
            "it is a TorchScript program, which is not loaded: that would run its code; "
            "save model.state_dict() instead"
        )
    order = members.get(f"{root}/byteorder")
    if order is not None:
        at = locate(data, order)
        if data[at : at + min(order.size, 16)].tobytes() != b"little":
            raise BadArchiveError("its bytes are not in little-endian order")
    pickle = members[f"{root}/data.pkl"]
    if pickle.size > MAX_PICKLE_BYTES:
        raise BadArchiveError(f"its data.pkl has {pickle.size} bytes; at most {MAX_PICKLE_BYTES}")
    at = locate(data, pickle)
    value, _, unknown = load(data[at : at + pickle.size].data, persistent=_storage)

    def place(storage: StorageRef) -> tuple[int, int]:
        member = members.get(f"{root}/data/{storage.key}")
        if member is None:
            raise BadArchiveError(f"storage {storage.key[:80]!r} is missing")
        return locate(data, member), member.size

    return _Contents(value, unknown, place)


def _root(members: Mapping[str, Member]) -> str:
    roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise BadArchiveError(f"it is an archive with {len(roots)} data.pkl, expected one")
    return roots[0]


def _storage(pid: object) -> object:
    """The storage meant by a persistent id of torch; None for anything else."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        return None
    kind, key, _, numel = pid[1:5]
    known = isinstance(kind, Global) and kind.module.partition(".")[0] == "torch"
    if not known or not isinstance(key, str) or not _is_count(numel):
        raise MalformedPickleError("a storage is described wrongly")
    dtype = None if kind.name in _UNTYPED else of_torch_storage(kind.name) or kind.name
    view = pid[5] if len(pid) == 6 else None
    if view is None:
        return StorageRef(key, dtype, numel)
    # Only files of torch 0.x have views of storages: (key, first element, number of elements).
    if not isinstance(view, tuple) or len(view) != 3 or not all(map(_is_count, view[1:])):
        raise MalformedPickleError("a view of a storage is described wrongly")
    return StorageRef(key, dtype, view[2], view[1])


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _legacy_contents(data: npt.NDArray[np.uint8]) -> _Contents:
    view = data.data
    magic, at, _ = load(view)
    if magic != _MAGIC:
        raise BadArchiveError("it is a pickle, but not one of torch.save")
    protocol, at, _ = load(view, at=at)
    if protocol != _PROTOCOL:
        raise BadArchiveError("it is of an unknown version of torch's old format")
    system, at, _ = load(view, at=at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadArchiveError("its bytes are not in little-endian order")
    dtypes: dict[str, DType | str | None] = {}

    def persistent(pid: object) -> object:
        storage = _storage(pid)
        if isinstance(storage, StorageRef):
            dtypes.setdefault(storage.key, storage.dtype)
        return storage

    value, at, unknown = load(view, at=at, persistent=persistent)
    keys, at, _ = load(view, at=at)
    if not isinstance(keys, list):
        raise BadArchiveError("its list of storages is damaged")
    places = _legacy_places(data, at, keys, dtypes)

    def place(storage: StorageRef) -> tuple[int, int]:
        if storage.key not in places:
            raise BadArchiveError(f"storage {storage.key[:80]!r} is missing")
        return places[storage.key]

    return _Contents(value, unknown, place)


def _legacy_places(
    data: npt.NDArray[np.uint8],
    at: int,
    keys: list[object],
    dtypes: Mapping[str, DType | str | None],
) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str) or key not in dtypes:
            raise BadArchiveError("its list of storages names one that no tensor uses")
        dtype = dtypes[key]
        if not _is_supported(dtype):
            raise BadArchiveError(f"a storage has the type {str(dtype)[:80]}, not supported")
        numel = int.from_bytes(data[at : at + 8].tobytes(), "little")
        n_bytes = numel * _item_bytes(dtype)
        at += 8
        if at + n_bytes > data.size:
            raise BadArchiveError("a storage lies outside of the file (cut off while copying?)")
        places[key] = (at, n_bytes)
        at += n_bytes
    return places


def _is_supported(dtype: DType | str | None) -> bool:
    return dtype is None or isinstance(dtype, DType)


def _item_bytes(dtype: DType | str | None) -> int:
    return dtype.bits // 8 if isinstance(dtype, DType) else 1


def only_tensor(data: npt.NDArray[np.uint8], spec: TensorSpec, path: str) -> Elements:
    """The values of a file of `torch.save`, its bytes `data`, that holds one tensor like `spec`.

    Raises:
        CheckpointFormatError: it is damaged, or holds something else.
    """
    try:
        contents = _contents(data)
        tensor = contents.root
        if not isinstance(tensor, StoredTensor) or (tensor.dtype, tensor.shape) != (
            spec.dtype,
            spec.shape if tensor.shape else (),
        ):
            raise BadArchiveError(f"a chunk is no {spec.dtype.value} tensor of shape {spec.shape}")
        place = _checked_place(tensor, spec, contents, data.size)
    except (BadArchiveError, MalformedPickleError, UnsafeCheckpointError) as reason:
        raise CheckpointFormatError(f"{path}: tensor {spec.name[:200]!a}: {reason}") from None
    item = spec.dtype.bits // 8
    strides = tuple(stride * item for stride in tensor.stride)
    return np.ndarray(
        tensor.shape, f"V{item}", buffer=data.data, offset=place.at, strides=strides
    ).reshape(spec.shape)


class TorchFile(StridedCheckpoint):
    """The tensors of one section of a file of `torch.save`, mapped."""

    format = "torch"

    def __init__(
        self,
        path: str,
        file: MappedFile,
        tensors: Mapping[str, StoredTensor],
        contents: _Contents,
        notes: list[str],
        *,
        section: str,
    ) -> None:
        places: dict[str, Place] = {}
        specs: dict[str, TensorSpec] = {}
        for name, tensor in tensors.items():
            try:
                specs[name] = _checked_spec(name, tensor)
                places[name] = _checked_place(tensor, specs[name], contents, file.size)
            except BadArchiveError as reason:
                raise CheckpointFormatError(f"{path}: tensor {name[:200]!a}: {reason}") from None
        self._file = file
        self._places = places
        super().__init__(
            path,
            specs,
            tied=_tied(specs, places),
            notes=tuple(notes),
            files=(file.id,),
            section=section,
        )

    def surroundings(self) -> Surroundings | None:
        """The dictionary around the section, read again from the file; None for a bare one."""
        root = _contents(self._file.bytes()).root
        section, _, _ = choose_section(root, self.path, self.section or None)
        if isinstance(section, Parts):
            return surroundings_of(root, {prefix_of(p): one for p, one in section.parts.items()})
        return surroundings_of(root, {"": section})


def _checked_spec(name: str, tensor: StoredTensor) -> TensorSpec:
    if not isinstance(tensor.dtype, DType):
        raise BadArchiveError(f"its type {str(tensor.dtype)[:80]} is not supported")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadArchiveError("its name is not valid Unicode") from None
    return TensorSpec(name, tensor.dtype, tensor.shape)


def _checked_place(
    tensor: StoredTensor, spec: TensorSpec, contents: _Contents, file_size: int
) -> Place:
    """Where `tensor` lies, after every element of it was found to lie in its storage."""
    if len(tensor.shape) != len(tensor.stride):
        raise BadArchiveError("its shape and its strides differ in length")
    item = spec.dtype.bits // 8
    if spec.numel == 0:
        return Place(0, (), ())
    storage = tensor.storage
    if not _is_supported(storage.dtype):
        raise BadArchiveError(f"its storage has the type {str(storage.dtype)[:80]}, not supported")
    storage_item = _item_bytes(storage.dtype)
    start, n_bytes = contents.place(storage)
    if (storage.first + storage.numel) * storage_item > n_bytes:
        raise BadArchiveError(
            f"its storage has {n_bytes} bytes, expected {storage.numel * storage_item}"
        )
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if (tensor.offset + last + 1) * item > storage.numel * storage_item:
        raise BadArchiveError("it reaches beyond its storage")
    # Strides of 0 repeat elements: a few bytes of file must not become gigabytes of memory.
    if spec.nbytes > max(storage.numel * storage_item, file_size, _FREE_BYTES):
        raise BadArchiveError(f"it repeats its elements to {spec.nbytes} bytes")
    at = start + storage.first * storage_item + tensor.offset * item
    sides = [(n, s * item) for n, s in zip(tensor.shape, tensor.stride, strict=True) if n != 1]
    return Place(at, tuple(n for n, _ in sides), tuple(s for _, s in sides))


def _tied(
    specs: Mapping[str, TensorSpec], places: Mapping[str, Place]
) -> tuple[tuple[str, ...], ...]:
    groups: dict[object, list[str]] = {}
    for name, spec in specs.items():
        if spec.numel:
            where = (places[name].at, places[name].strides, spec.shape, spec.dtype)
            groups.setdefault(where, []).append(name)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))


class Torch(Format):
    """What `torch.save` writes: a state dict, or a dictionary of a toolkit that holds one."""

    name = "torch"
    summary = "a file of torch.save (Lightning's included)"
    suffixes = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
    in_folders = ("pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin")
    writes = True
    side_files = "the dictionary of the toolkit, without its optimiser and other weights"
    remedy = "save model.state_dict() where a file holds whole objects or TorchScript"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By the beginning of a zip archive or a pickle, or by its suffix."""
        return head.startswith((_ZIP, _PICKLE)) or path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The tensors of the section `key`, or of the one that can be meant."""
        return open_torch(path, key=key)

    def plan(self, request: OutputRequest) -> OutputPlan:
        """One file: the dictionary that the inputs have around their weights, or a state dict."""
        path = Path(request.path)
        around = None if request.like is None else request.like.surroundings()
        if around is None and path.name.lower().endswith(".ckpt"):
            raise CheckpointError(
                f"{request.path}: a Lightning checkpoint holds more than weights, and no input has "
                "it; write a .pt file and load it with load_state_dict"
            )
        plans = [
            torchwriter.plan_file(path.name, request.specs, request.groups, around=one)
            for one in _layouts(request, around)
        ]
        # Of inputs that differ in an epoch or a seed the same one in every order of arguments.
        file = min(plans, key=lambda plan: plan.fixed)
        left = () if around is None else around.left_out
        note = f"left out of the dictionary around the weights: {shortened(left)}"
        notes = (note,) if left else ()
        return OutputPlan(request=request, format=self.name, files=(file,), notes=notes)


def _layouts(request: OutputRequest, around: Surroundings | None) -> Sequence[Surroundings | None]:
    """The dictionaries of all inputs, where they have one at the same place as `like`."""
    if around is None or request.like is None:
        return [around]
    found = [one.surroundings() for one in request.inputs if one.section == request.like.section]
    return [one for one in found if one is not None] or [around]
