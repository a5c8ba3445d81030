"""Archives of NeMo (`.nemo`): a tar of a configuration, a tokenizer and a file of `torch.save`."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

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

_WEIGHTS = "model_weights.ckpt"


def _weights(path: Path) -> tarfile.TarInfo:
    """The member with the weights.

    Raises:
        CheckpointFormatError: it is no tar archive that is not compressed, or has no such member.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    break
                if member.isreg() and Path(member.name).name == _WEIGHTS and not member.sparse:
                    return member
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise CheckpointFormatError(
            f"{path} is no archive of NeMo that can be read: {error}; pack a compressed one again: "
            "gunzip < model.nemo > plain.nemo"
        ) from None
    raise CheckpointFormatError(
        f"{path} holds no {_WEIGHTS}; unpack one with a distributed checkpoint first (tar -xf), "
        "and give the folder in it that has a .metadata"
    )


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
        member, file = _weights(path), MappedFile(path)
        if member.offset_data + member.size > file.size:
            raise CheckpointFormatError(f"{path}: {_WEIGHTS} is cut off")
        found = read_torch(MappedRange(file, member.offset_data, member.size), key=key)
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
    member, data = _weights(Path(source.path)), MappedFile(source.path).bytes()
    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if data.size - (end - member.offset) > MAX_SIDE_BYTES:
        raise CheckpointError(
            f"{source.path} has {data.size - end + member.offset} bytes beside its weights, at "
            f"most {MAX_SIDE_BYTES} are copied; write .safetensors"
        )
    member.size = inner.size
    head = data[: member.offset].tobytes() + member.tobuf(tarfile.GNU_FORMAT)
    begin = len(head)
    padding = bytes(-inner.size % tarfile.BLOCKSIZE)
    tail = padding + data[end:].tobytes()
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
