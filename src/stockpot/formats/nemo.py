"""Archives of NeMo (`.nemo`): a tar of a configuration, a tokenizer and a file of `torch.save`."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import torchwriter
from stockpot.formats.base import Checkpoint, stored
from stockpot.formats.format import Format
from stockpot.formats.output import OutputPlan, OutputRequest, PlannedFile
from stockpot.formats.torchfile import read_torch
from stockpot.io.storage import MappedFile, MappedRange

MAX_MEMBERS = 10_000
"""Members of an archive; a model has a dozen."""

MAX_SIDE_BYTES = 1 << 28
"""Bytes of what is no weights, which is copied as a whole."""

_MAX_EXTENDED = 1 << 16
_WEIGHTS = "model_weights.ckpt"


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in the archive.

    Attributes:
        offset: where what describes it begins.
        begin: where its bytes begin.
        size: how many it has.
        header: the block that describes it.
    """

    offset: int
    begin: int
    size: int
    header: bytes

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.begin + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _weights(file: MappedFile) -> _Member:
    """The member with the weights.

    Raises:
        CheckpointFormatError: it is no tar archive that is not compressed, or has no such member.
    """
    try:
        found = next((m for m in _members(file) if _name(m.header) == _WEIGHTS), None)
    except tarfile.HeaderError as error:
        raise CheckpointFormatError(
            f"{file.path} is no archive of NeMo that can be read: {error}; pack a compressed one "
            "again: gunzip < model.nemo > plain.nemo"
        ) from None
    if found is None:
        raise CheckpointFormatError(
            f"{file.path} holds no {_WEIGHTS}; unpack one with a distributed checkpoint first "
            "(tar -xf), and give the folder in it that has a .metadata"
        )
    if found.begin + found.size > file.size:
        raise CheckpointFormatError(f"{file.path}: {_WEIGHTS} is cut off")
    return found


def _members(file: MappedFile) -> Iterator[_Member]:
    """The regular files of the archive; tarfile would keep every description, however long."""
    data, at = file.bytes(), 0
    size: int | None = None  # as an extended header before the member has it
    begin: int | None = None
    for _ in range(MAX_MEMBERS):
        header = data[at : at + tarfile.BLOCKSIZE].tobytes()
        if not any(header):  # two empty blocks end an archive
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        member = _Member(
            at if begin is None else begin,
            at + tarfile.BLOCKSIZE,
            info.size if size is None else size,
            header,
        )
        if member.size < 0:
            raise tarfile.HeaderError("a member has a size below zero")
        at = member.end
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            begin, size = member.offset, _extended_size(data, member)
        elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            begin = member.offset
        else:
            if info.type in tarfile.REGULAR_TYPES and info.type != tarfile.GNUTYPE_SPARSE:
                yield member
            size = begin = None


def _extended_size(data: npt.NDArray[np.uint8], member: _Member) -> int | None:
    """The size that an extended header has for the member behind it, one of 8 GiB or more."""
    text = data[member.begin : member.begin + min(member.size, _MAX_EXTENDED)].tobytes()
    found = re.search(rb"(?:^|\n)\d+ size=(\d{1,18})\n", text)
    return None if found is None else int(found[1])


def _name(header: bytes) -> str:
    """The last part of the name in a header."""
    return header[:100].partition(b"\0")[0].decode("utf-8", "replace").rpartition("/")[2]


class Nemo(Format):
    """What `save_to` of NeMo's models writes."""

    name = "nemo"
    summary = "an archive of NeMo"
    suffixes = (".nemo",)
    writes = True
    side_files = "configuration, tokenizer and all else in an ingredient's archive"
    remedy = "a compressed one is unpacked first: gunzip < model.nemo > plain.nemo"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its suffix."""
        return path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The tensors of the file with the weights, mapped."""
        file = MappedFile(path)
        member = _weights(file)
        found = read_torch(MappedRange(file, member.begin, member.size), key=key)
        found.format = self.name
        return found

    def plan(self, request: OutputRequest) -> OutputPlan:
        """The archive of an ingredient with other weights: of those that differ always the same."""
        sources = [stored(one) for one in (*request.inputs, request.like) if one is not None]
        found = [one for one in sources if one.format == self.name]
        if not found:
            raise CheckpointError(
                f"{request.path}: a .nemo file holds a configuration, and no ingredient has one; "
                "write .safetensors"
            )
        file = min((_plan_file(one, request) for one in found), key=lambda plan: plan.fixed)
        return OutputPlan(request=request, format=self.name, files=(file,))


def _plan_file(source: Checkpoint, request: OutputRequest) -> PlannedFile:
    """The archive at `source.path` with the weights that are asked for."""
    name = Path(request.path).name
    inner = torchwriter.plan_file(name, request.specs, request.groups, around=source.surroundings())
    archive = MappedFile(source.path)
    member, data = _weights(archive), archive.bytes()
    n_beside = data.size - (member.end - member.offset)
    if n_beside > MAX_SIDE_BYTES:
        raise CheckpointError(
            f"{source.path} has {n_beside} bytes beside its weights, at most {MAX_SIDE_BYTES} are "
            "copied; write .safetensors"
        )
    info = tarfile.TarInfo.frombuf(member.header, "utf-8", "surrogateescape")
    info.size = inner.size
    head = data[: member.offset].tobytes() + info.tobuf(tarfile.GNU_FORMAT)
    begin = len(head)
    padding = bytes(-inner.size % tarfile.BLOCKSIZE)
    tail = padding + data[member.end :].tobytes()
    return replace(
        inner,
        size=begin + inner.size + len(tail),
        offsets={tensor: begin + at for tensor, at in inner.offsets.items()},
        fixed=(
            (0, head),
            *((begin + at, piece) for at, piece in inner.fixed),
            (begin + inner.size, tail),
        ),
        checksums={t: tuple(begin + at for at in slots) for t, slots in inner.checksums.items()},
    )
