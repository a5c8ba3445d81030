"""Writing a checkpoint of known specs tensor by tensor, in any order, from any thread.

`Format.plan` decides every file, its size and the place of every tensor before a byte is written;
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
import functools
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError
from stockpot.formats.base import Checkpoint, leaders_of
from stockpot.io import atomic, kernel
from stockpot.io.files import open_file, read_at, sync, write_at
from stockpot.io.objects import is_remote
from stockpot.io.storage import copy_file
from stockpot.io.uploads import StagedObjects
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Buffer

RECORD = "stockpot.json"
"""Name of the record in a folder, and the ending of a record beside a file."""
_WEIGHTS = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?(\.[^./]+?)(?:\.index\.json)?")
_SUM_BYTES = 4 << 20
CARD = "README.md"
"""Name of the model card in a folder, as the hub has it."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of an output.

    Attributes:
        name: relative to the output folder; the file's own name where the output is one file.
        size: bytes, known before anything is written.
        offsets: first byte of each tensor in the file.
        fixed: (offset, bytes) of everything that is not tensor values.
        checksums: where the CRC32 of a tensor's bytes goes once they are known, little-endian.
        summed: first and last byte of other ranges, and where the CRC32 of each goes.
    """

    name: str
    size: int
    offsets: Mapping[str, int] = field(default_factory=dict)
    fixed: tuple[tuple[int, bytes | memoryview], ...] = ()
    checksums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    summed: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutputRequest:
    """An output to be planned.

    Attributes:
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
        quantization: what the `quantization_config` of a folder's `config.json` says of tensors
            that are not stored plainly; None for plain ones.
        stem: what a folder calls its weights; None: as in `like`.
        rewritten: side files of a folder that are not those of `like`, with their content.
    """

    path: StrPath
    specs: Mapping[str, TensorSpec]
    tied: Iterable[Iterable[str]] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    like: Checkpoint | None = None
    config_from: StrPath | None = None
    max_shard_bytes: int | None = None
    inputs: tuple[Checkpoint, ...] = ()
    quantization: Mapping[str, JSON] | None = None
    stem: str | None = None
    rewritten: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """`tied` as tuples."""
        return tuple(tuple(group) for group in self.tied)


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """Everything about an output but its values.

    Attributes:
        request: what was asked for.
        format: as `Checkpoint.format` will be when it is opened.
        files: files that are written, index included.
        folder: whether the output is a folder.
        copies: side files, as (name, source path).
        rewritten: side files whose content is adapted, as (name, bytes).
        differing: names of side files that are not the same in all ingredients.
        notes: what a person should know of what is left out, one sentence each.
        older: names of an older output's files in the same folder that are called otherwise, and
            would be read beside the new ones or in place of them.
    """

    request: OutputRequest
    format: str
    files: tuple[PlannedFile, ...]
    folder: bool = False
    copies: tuple[tuple[str, str], ...] = ()
    rewritten: tuple[tuple[str, bytes], ...] = ()
    differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    older: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        """The output, as given."""
        return os.fspath(self.request.path)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What it will hold."""
        return self.request.specs

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names that are one tensor."""
        return self.request.groups

    def replaces(self, name: str) -> bool:
        """Whether a file of an older output in the same folder goes: a weights file, a record."""
        return name == RECORD or name in self.older or whole_name(name) in self._whole_names

    def replaced(self) -> list[str]:
        """Files that are at the place of the output now and would go, by relative paths."""
        if is_remote(self.path):
            staged = StagedObjects(self.path, folder=self.folder, replaces=self.replaces)
            there = [name or staged.key.rpartition("/")[2] for name in staged.there()]
            return [name for name in there if not self.folder or self._goes(name)]
        place = Path(self.path)
        if not self.folder:
            beside = place.with_name(f"{place.name}.{RECORD}")
            return [path.name for path in (place, beside) if path.is_file()]
        there = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]
        return sorted(filter(self._goes, there))

    def _goes(self, name: str) -> bool:
        return name in self.names or self.replaces(name)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The files of a folder, without record and model card."""
        written = {file.name for file in self.files}
        return frozenset(written.union(name for name, _ in (*self.copies, *self.rewritten)))

    @functools.cached_property
    def _whole_names(self) -> frozenset[str]:
        return frozenset(whole_name(file.name) for file in self.files)

    @property
    def n_bytes(self) -> int:
        """Bytes that the output takes on disk, side files included."""
        return (
            sum(file.size for file in self.files)
            + sum(os.path.getsize(source) for _, source in self.copies)  # noqa: PTH202
            + sum(len(data) for _, data in self.rewritten)
        )


def whole_name(name: str) -> str:
    """What the shards of a file, their index and the file itself are called in common.

    >>> whole_name("unet/model-00001-of-00002.safetensors"), whole_name("model.bin.index.json")
    ('unet/model.safetensors', 'model.bin')
    """
    match = _WEIGHTS.fullmatch(name)
    return name if match is None else match[1] + match[2]


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
        leaders = leaders_of(plan.tied)
        self._owner = {name: leaders.get(name, name) for name in plan.specs}
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
        for place, offset in self._places[owner]:
            self._put(place, view, offset + byte_offset)
        summed = (byte_offset, n_bytes, zlib.crc32(view)) if owner in self._slots else None
        with self._lock:
            self._arrived[owner] = self._arrived.get(owner, 0) + n_bytes
            if summed is not None:
                self._sums.setdefault(owner, []).append(summed)

    def _put(self, place: int, view: memoryview, offset: int) -> None:
        with self._turns[place]:
            write_at(place, view, offset)
        kernel.flush_async(place, offset, len(view))

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

    def refuse_incomplete(self) -> None:
        """Raise unless every tensor was written."""
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

    def finish(self) -> None:
        """Check that all has arrived and complete the files; `open_output` calls it."""
        self.refuse_incomplete()
        for name, slots in self._slots.items():
            total = join_crc32(sorted(self._sums.get(name, ())))
            for fd, offset in slots:
                write_at(fd, memoryview(total.to_bytes(4, "little")), offset)
        for fd, file in zip(self._fds, self.plan.files, strict=True):
            for start, stop, places in file.summed:
                checksum = _crc32_of(fd, start, stop).to_bytes(4, "little")
                for at in places:
                    write_at(fd, memoryview(checksum), at)
            sync(fd)
        if self._folder is None:
            return
        written = {RECORD: self._record, CARD: self._card if self._may_write_card() else None}
        for name, data in written.items():
            if data is not None:
                (self._folder / name).write_bytes(data)

    def _may_write_card(self) -> bool:
        """Whether no page of somebody else's would be replaced: one without our record beside."""
        place = Path(self.plan.path)
        return (place / RECORD).exists() or not (place / CARD).exists()


@contextlib.contextmanager
def open_output(plan: OutputPlan, *, force: bool = False) -> Iterator[Output]:
    """Carry out a plan: the output is complete after a clean exit, and absent after any other.

    An older output stays untouched until then. The record of an older file goes with it.

    Raises:
        OutputExistsError: there is an output and `force` is false.
        CheckpointError: too little room on the disk, or tensors that were not written.
    """
    if is_remote(plan.path):
        raise CheckpointError(f"{plan.path}: this is written to a disk only; copy it there")
    if plan.folder:
        with (
            atomic.staged_folder(plan.path, force=force, replaces=plan.replaces) as staged,
            contextlib.ExitStack() as stack,
        ):
            atomic.require_space(staged.path, plan.n_bytes)
            write_side_files(plan, staged.path)
            fds = [_create(staged.path / file.name, stack) for file in plan.files]
            output = _start(plan, staged.path, fds)
            yield output
            output.finish()
        return
    # Contexts end from the last to the first: the weights are put in place before their record.
    with contextlib.ExitStack() as last, atomic.staged_file(plan.path, force=force) as staged:
        atomic.require_space(staged.path.parent, plan.n_bytes)
        output = _start(plan, None, [staged.fd])
        yield output
        output.finish()
        # Before anything of an older output goes: a rival may have finished meanwhile.
        last.enter_context(atomic.one_at_a_time(staged.target))
        atomic.refuse_existing(staged.target, force=force, folder=False)
        record = staged.target.with_name(f"{staged.target.name}.{RECORD}")
        atomic.clear_stale(record)
        if output._record is not None:
            beside = last.enter_context(atomic.staged_file(record, force=True))
            write_at(beside.fd, memoryview(output._record), 0)
            sync(beside.fd)
        sync(staged.fd)  # a disk that fails does it while all that is older is in place
        older = record.read_bytes() if record.is_file() else None
        # It describes the older weights: better none for a moment than one that lies.
        record.unlink(missing_ok=True)
        # It comes back where the weights could not be put in their place.
        if older is not None:
            last.push(functools.partial(_put_back, record, older))


def _put_back(record: Path, older: bytes, kind: type[BaseException] | None, *_: object) -> None:
    if kind is not None:
        record.write_bytes(older)


def _create(path: Path, stack: contextlib.ExitStack) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = open_file(path, "create")
    stack.callback(os.close, fd)
    return fd


def _start(plan: OutputPlan, folder: Path | None, fds: Sequence[int]) -> Output:
    for fd, file in zip(fds, plan.files, strict=True):
        kernel.reserve(fd, file.size)
        for offset, data in file.fixed:
            write_at(fd, memoryview(data), offset)
    return Output(plan, folder, fds)


def write_side_files(plan: OutputPlan, folder: Path) -> None:
    """Put the files of a planned folder that are no weights into `folder`."""
    for name, source in plan.copies:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(source, folder / name)
    for name, data in plan.rewritten:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _crc32_of(fd: int, start: int, stop: int) -> int:
    """Of bytes that were written; they are still in the page cache."""
    crc = 0
    for at in range(start, stop, _SUM_BYTES):
        crc = zlib.crc32(read_at(fd, min(_SUM_BYTES, stop - at), at), crc)
    return crc


def join_crc32(parts: Iterable[tuple[int, int, int]]) -> int:
    """CRC32 of bytes whose pieces were summed apart: (offset, length, CRC32), in order.

    Appending n bytes multiplies the sum before them by x^(8n) in GF(2)[x] modulo the CRC's
    polynomial.

    >>> import zlib
    >>> pieces = [(0, 5, zlib.crc32(b"hello")), (5, 6, zlib.crc32(b" world"))]
    >>> join_crc32(pieces) == zlib.crc32(b"hello world")
    True
    """
    total = 0
    for _, length, crc in parts:
        total = _multiply(_power(length), total) ^ crc
    return total


_POLYNOMIAL = 0xEDB88320  # bit 31 is x^0


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=4096)
def _power(n_bytes: int) -> int:
    """x^(8 · n_bytes) modulo the polynomial, by repeated squaring."""
    result, square = 0x80000000, 0x00800000  # 1 and x^8
    while n_bytes:
        if n_bytes & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        n_bytes >>= 1
    return result
