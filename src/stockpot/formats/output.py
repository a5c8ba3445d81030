"""Writing a checkpoint of known specs tensor by tensor, in any order, from any thread.

`plan_output` decides every file, its size and the place of every tensor before a byte is written;
the plan is what `--dry-run` prints. `open_output` carries it out: values go to their final place as
they are made, so memory does not grow with the model, and the output appears whole or not at all.

Bytes depend on names, dtypes, shapes, values and metadata only, never on the order in which
ingredients were given: safetensors files are laid out as the safetensors library does it, and where
a format leaves the order open, names are sorted with their numbers counted (layer 2 before 10).

*Tied tensors.* One name of each group is written by the caller and reaches all of them. A `.pt`
file holds one storage under several names. The safetensors format has no sharing: every name in
`specs` is written out, so the file loads with `load_state_dict(strict=True)` and `from_pretrained`
alike. Folders from transformers hold one name of each group to begin with, and keep to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.formats import sidefiles, torchwriter
from stockpot.io import atomic as _io
from stockpot.io import kernel as _kernel
from stockpot.io.paths import natural_key
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from stockpot.formats.base import Checkpoint


DEFAULT_MAX_SHARD_BYTES = 5_000_000_000
"""Tensor bytes per file of a folder, unless the folder it is modelled on has smaller shards."""

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
# The library refuses to read longer headers.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of an output.

    Attributes:
        name: relative to the output folder; the file's own name where the output is one file.
        size: bytes, known before anything is written.
        offsets: first byte of each tensor in the file.
        fixed: (offset, bytes) of everything that is not tensor values.
        checksums: where the CRC32 of a tensor's bytes goes once they are known, little-endian.
    """

    name: str
    size: int
    offsets: Mapping[str, int] = field(default_factory=dict)
    fixed: tuple[tuple[int, bytes], ...] = ()
    checksums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Everything about an output but its values.

    Attributes:
        path: as given.
        format: `"safetensors"`, `"safetensors-sharded"` or `"torch"`, as `Checkpoint.format` will
            be when it is opened.
        folder: whether the output is a folder.
        specs: what it will hold.
        tied: groups of names that are one tensor.
        files: files that are written, index included.
        copies: side files, as (name, source path).
        rewritten: side files whose content is adapted, as (name, bytes).
        differing: names of side files that are not the same in all ingredients.
    """

    path: str
    format: str
    folder: bool
    specs: Mapping[str, TensorSpec]
    tied: tuple[tuple[str, ...], ...]
    files: tuple[PlannedFile, ...]
    copies: tuple[tuple[str, str], ...] = ()
    rewritten: tuple[tuple[str, bytes], ...] = ()
    differing: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes that the output takes on disk, side files included."""
        return (
            sum(file.size for file in self.files)
            + sum(os.path.getsize(source) for _, source in self.copies)  # noqa: PTH202
            + sum(len(data) for _, data in self.rewritten)
        )


def writes_folder(path: StrPath) -> bool:
    """Whether an output of this name is a folder: anything but `.safetensors` and torch files.

    >>> writes_folder("soup.safetensors"), writes_folder("soup.pt"), writes_folder("soups/llama-8b")
    (False, False, True)
    """
    return Path(path).suffix.lower() not in (".safetensors", ".ckpt", *_TORCH_SUFFIXES)


def record_path(path: StrPath) -> Path:
    """Where the record of the output `path` lies: beside a file, or inside a folder.

    >>> str(record_path("out/soup.safetensors")), str(record_path("out/soup"))
    ('out/soup.safetensors.stockpot.json', 'out/soup/stockpot.json')
    """
    path = Path(path)
    if writes_folder(path):
        return path / sidefiles.RECORD
    return path.with_name(f"{path.name}.{sidefiles.RECORD}")


def agreed_metadata(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """The metadata that all `checkpoints` carry with equal values.

    Sizes are left out: they describe the old files.
    """
    first, *others = [checkpoint.metadata for checkpoint in checkpoints]
    return {
        key: value
        for key, value in first.items()
        if key not in ("total_size", "total_parameters")
        and all(other.get(key) == value for other in others)
    }


def plan_output(
    path: StrPath,
    specs: Mapping[str, TensorSpec],
    *,
    tied: Sequence[Sequence[str]] = (),
    metadata: Mapping[str, str] | None = None,
    like: Checkpoint | None = None,
    config_from: StrPath | None = None,
    max_shard_bytes: int | None = None,
    inputs: Sequence[StrPath] = (),
    layout: Mapping[str, JSON] | None = None,
) -> OutputPlan:
    """Decide the files of an output; writes nothing.

    A path that ends in `.safetensors`, or in `.pt`, `.pth` or `.bin`, becomes one file; any other
    becomes a folder with the side files (configuration, tokenizer, …) of `config_from`, else of
    `like`. A folder must not be one that holds an input, and no input is ever written over.

    Args:
        path: the output.
        specs: names, dtypes and shapes; each key equals its spec's name.
        tied: groups of names in `specs` that are one tensor.
        metadata: text for the header of safetensors files; `{"format": "pt"}` is always there,
            because transformers refuses files without it.
        like: the checkpoint whose side files and shard size a folder takes over.
        config_from: a model folder that gives the side files instead.
        max_shard_bytes: most tensor bytes in one file of a folder. Default: as in `like`, if it is
            sharded, else 5 GB.
        inputs: every checkpoint the output is made of; folders among them are compared, so that
            the plan can list the side files in which they differ.
        layout: what the `quantization_config` of a folder's `config.json` says of tensors that are
            not stored plainly; None for plain ones.

    Raises:
        OutputExistsError: the output is one of the inputs, or a folder that holds one.
        CheckpointError: the format cannot hold it.
    """
    path = os.fspath(path)
    sources = [*inputs, *([like.path] if like is not None else [])]
    _refuse_inputs(path, sources)
    groups = tuple(tuple(group) for group in tied)
    if not writes_folder(path):
        name = Path(path).name
        suffix = Path(path).suffix.lower()
        if suffix == ".ckpt":
            raise CheckpointError(
                f"{path}: Lightning checkpoints cannot be written, because they hold more than "
                "weights; write a .pt file and load it with load_state_dict"
            )
        if suffix == ".safetensors":
            files: tuple[PlannedFile, ...] = (
                _plan_safetensors(name, list(specs.values()), metadata),
            )
            return OutputPlan(path, "safetensors", False, dict(specs), groups, files)
        files = (_plan_torch(name, specs, groups),)
        return OutputPlan(path, "torch", False, dict(specs), groups, files)
    side = sidefiles.collect(
        like=None if like is None else like.path,
        config_from=config_from,
        inputs=inputs,
        dtypes={spec.dtype for spec in specs.values() if spec.dtype.mixable},
        layout=layout,
    )
    limit = max_shard_bytes
    if limit is None:
        limit = side.largest_shard_bytes or DEFAULT_MAX_SHARD_BYTES
    files = _plan_folder(side.stem, list(specs.values()), metadata, limit)
    return OutputPlan(
        path,
        "safetensors" if len(files) == 1 else "safetensors-sharded",
        True,
        dict(specs),
        groups,
        files,
        side.copies,
        side.rewritten,
        side.differing,
    )


def _refuse_inputs(path: str, inputs: Sequence[StrPath]) -> None:
    target = Path(os.path.realpath(path))
    for given in inputs:
        source = Path(os.path.realpath(given))
        if source.exists() and (source == target or target in source.parents):
            raise OutputExistsError(
                path,
                f"the output {path} {'is' if source == target else 'holds'} the ingredient "
                f"{os.fspath(given)}, which its record needs: choose another output",
            )


def _plan_folder(
    stem: str, specs: list[TensorSpec], metadata: Mapping[str, str] | None, limit: int
) -> tuple[PlannedFile, ...]:
    if limit < 1:
        raise CheckpointError(f"max_shard_bytes is {limit}; it must be at least 1")
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in sorted(specs, key=lambda spec: natural_key(spec.name)):
        if shards[-1] and filled + spec.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    if len(shards) == 1:
        return (_plan_safetensors(f"{stem}.safetensors", shards[0], metadata),)
    files = [
        _plan_safetensors(f"{stem}-{i:05}-of-{len(shards):05}.safetensors", shard, metadata)
        for i, shard in enumerate(shards, 1)
    ]
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs)},
        "weight_map": {name: file.name for file in files for name in file.offsets},
    }
    data = _io.dump_json(index)
    return (*files, PlannedFile(f"{stem}.safetensors.index.json", len(data), fixed=((0, data),)))


def _plan_safetensors(
    name: str, specs: list[TensorSpec], metadata: Mapping[str, str] | None
) -> PlannedFile:
    header: dict[str, object] = {
        "__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))
    }
    begin, starts = 0, {}
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.rank, spec.name)):
        starts[spec.name] = begin
        header[spec.name] = {
            "dtype": spec.dtype.value,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
        begin += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{name} would have a header of {len(text)} bytes, and readers accept "
            f"{_MAX_HEADER_BYTES}: write a folder of smaller shards"
        )
    head = len(text).to_bytes(8, "little") + text
    offsets = {tensor: len(head) + start for tensor, start in starts.items()}
    return PlannedFile(name, len(head) + begin, offsets, ((0, head),))


def _plan_torch(
    name: str, specs: Mapping[str, TensorSpec], tied: tuple[tuple[str, ...], ...]
) -> PlannedFile:
    ordered = [specs[key] for key in sorted(specs, key=natural_key)]
    layout = torchwriter.lay_out(ordered, tied)
    return PlannedFile(name, layout.size, layout.offsets, layout.fixed, layout.checksums)


class Output:
    """An output being written; made by `open_output`.

    It has state because it holds open files and counts what has arrived.
    """

    def __init__(self, plan: OutputPlan, folder: Path | None, fds: Sequence[int]) -> None:
        self.plan = plan
        self._folder = folder
        self._fds = tuple(fds)
        # The kernel lets one thread at a time write to a file, and has the others wait awake.
        self._turns = {fd: threading.Lock() for fd in fds}
        self._lock = threading.Lock()
        self._arrived: dict[str, int] = {}
        self._sums: dict[str, list[tuple[int, int, int]]] = {}
        self._record: bytes | None = None
        self._card: bytes | None = None
        first = {name: group[0] for group in plan.tied for name in group}
        self._owner = {name: first.get(name, name) for name in plan.specs}
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._slots: dict[str, list[tuple[int, int]]] = {}
        for fd, file in zip(fds, plan.files, strict=True):
            for name, offset in file.offsets.items():
                self._places.setdefault(self._owner[name], []).append((fd, offset))
            for name, offsets in file.checksums.items():
                self._slots.setdefault(self._owner[name], []).extend((fd, at) for at in offsets)

    def write(self, name: str, byte_offset: int, data: Buffer) -> None:
        """Write `data`, contiguous, at `byte_offset` of tensor `name`. Any thread, any order.

        Every byte of every tensor has to be written exactly once, or the output is not kept. A tied
        group is written once, under any of its names.

        Raises:
            ValueError: no such tensor, or beyond its end.
        """
        view = memoryview(data)
        n_bytes = view.nbytes
        if name not in self._owner or byte_offset + n_bytes > self.plan.specs[name].nbytes:
            raise ValueError(f"{name!r} has no bytes {byte_offset}…{byte_offset + n_bytes}")
        if n_bytes == 0:
            return
        view = view.cast("B") if view.ndim else memoryview(view.tobytes())
        owner = self._owner[name]
        for fd, offset in self._places[owner]:
            with self._turns[fd]:
                _pwrite(fd, view, offset + byte_offset)
            _kernel.flush_async(fd, offset + byte_offset, n_bytes)
        summed = (byte_offset, n_bytes, zlib.crc32(view)) if owner in self._slots else None
        with self._lock:
            self._arrived[owner] = self._arrived.get(owner, 0) + n_bytes
            if summed is not None:
                self._sums.setdefault(owner, []).append(summed)

    def record(self, data: bytes) -> None:
        """Give the record that is kept with the output (see `record_path`); the last one counts."""
        self._record = data

    @property
    def folder(self) -> Path | None:
        """Where the files of a folder are while it is written; None for one file."""
        return self._folder

    def card(self, data: bytes) -> None:
        """Give the `README.md` of a folder; a single file has none, and ignores it."""
        self._card = data

    def finish(self) -> None:
        """Check that all has arrived and complete the files; `open_output` calls it."""
        missing = [
            name
            for name, spec in self.plan.specs.items()
            if self._owner[name] == name and self._arrived.get(name, 0) != spec.nbytes
        ]
        if missing:
            raise CheckpointError(
                f"{self.plan.path} is not kept: {len(missing)} tensors were not written exactly "
                f"once, among them {missing[0]!r} ({self._arrived.get(missing[0], 0)} bytes "
                f"of {self.plan.specs[missing[0]].nbytes})"
            )
        for name, slots in self._slots.items():
            total = torchwriter.join_crc32(sorted(self._sums.get(name, ())))
            for fd, offset in slots:
                _pwrite(fd, memoryview(total.to_bytes(4, "little")), offset)
        for fd in self._fds:
            os.fsync(fd)
        if self._folder is None:
            return
        for name, data in ((sidefiles.RECORD, self._record), (sidefiles.CARD, self._card)):
            if data is not None:
                (self._folder / name).write_bytes(data)


@contextlib.contextmanager
def open_output(plan: OutputPlan, *, force: bool = False) -> Iterator[Output]:
    """Carry out a plan: the output is complete after a clean exit, and absent after any other.

    An older output stays untouched until then. The record of an older file goes with it.

    Raises:
        OutputExistsError: there is an output and `force` is false.
        CheckpointError: too little room on the disk, or tensors that were not written.
    """
    if plan.folder:
        with _io.staged_folder(plan.path, force=force) as staged, contextlib.ExitStack() as stack:
            _io.require_space(staged.path, plan.n_bytes)
            _write_side_files(plan, staged.path)
            fds = [_create(staged.path / file.name, stack) for file in plan.files]
            output = _start(plan, staged.path, fds)
            yield output
            output.finish()
        return
    # Contexts end from the last to the first: the weights are put in place before their record.
    with contextlib.ExitStack() as last, _io.staged_file(plan.path, force=force) as staged:
        _io.require_space(staged.path.parent, plan.n_bytes)
        output = _start(plan, None, [staged.fd])
        yield output
        output.finish()
        record = record_path(staged.target)
        _io.clear_stale(record)
        if output._record is not None:
            beside = last.enter_context(_io.staged_file(record, force=True))
            _pwrite(beside.fd, memoryview(output._record), 0)
            os.fsync(beside.fd)
        # It describes the older weights: better none for a moment than one that lies.
        record.unlink(missing_ok=True)


def _create(path: Path, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, fd)
    return fd


def _start(plan: OutputPlan, folder: Path | None, fds: Sequence[int]) -> Output:
    for fd, file in zip(fds, plan.files, strict=True):
        _kernel.reserve(fd, file.size)
        for offset, data in file.fixed:
            _pwrite(fd, memoryview(data), offset)
    return Output(plan, folder, fds)


def _write_side_files(plan: OutputPlan, folder: Path) -> None:
    for name, source in plan.copies:
        (folder / name).write_bytes(Path(source).read_bytes())
    for name, data in plan.rewritten:
        (folder / name).write_bytes(data)


def _pwrite(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
