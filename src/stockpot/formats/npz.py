"""Archives of NumPy (`.npz`), stored or compressed; arrays of objects are never unpickled.

A zip archive of one `.npy` file for each array: a magic number, a header that is a Python literal,
and the values. Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import ast
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.format import Format
from stockpot.formats.mapped import StridedCheckpoint, contiguous
from stockpot.formats.output import OutputPlan, OutputRequest
from stockpot.formats.ziplayout import ALIGNMENT, Entry, plan_archive
from stockpot.formats.zipped import BadArchiveError, Member, directory, locate, packed_range
from stockpot.io.paths import natural_key
from stockpot.io.storage import MappedFile
from stockpot.tensors.spec import DType, TensorSpec, parse_dtype

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_MAX_RATIO = 1032
"""Deflate makes no more of a byte than this."""
_TAIL = ".npy"
_DESCR = re.compile(r"[<|][biufc]\d+")


@dataclass(frozen=True, slots=True)
class _Array:
    """One member: what it holds and where its values begin in the member."""

    member: Member
    spec: TensorSpec
    fortran: bool
    begin: int


class NpzFile(StridedCheckpoint):
    """The arrays of an archive of NumPy; stored ones are mapped, compressed ones unpacked."""

    format = "npz"

    def __init__(self, file: MappedFile) -> None:
        data = file.bytes()
        try:
            members = directory(data)
            arrays = [_array(data, m) for m in members.values() if m.name.endswith(_TAIL)]
            if not arrays:
                raise BadArchiveError("it holds no arrays")
            self._places = {
                one.spec.name: contiguous(
                    one.spec,
                    (locate(data, one.member) if one.member.stored else 0) + one.begin,
                    fortran=one.fortran,
                )
                for one in arrays
            }
        except BadArchiveError as reason:
            raise CheckpointFormatError(
                f"{file.path} is no valid archive of NumPy: {reason}"
            ) from None
        self._file = file
        self._packed = {one.spec.name: one for one in arrays if not one.member.stored}
        self.computed = bool(self._packed)
        super().__init__(file.path, {one.spec.name: one.spec for one in arrays}, files=(file.id,))

    def scattered(self, name: str) -> bool:
        """Whether it is stored in Fortran's order; a compressed one is unpacked whole."""
        return name not in self._packed and super().scattered(name)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`.

        Raises:
            CheckpointFormatError: it is compressed, and damaged.
        """
        found = self._packed.get(name)
        if found is None:
            return super().part(name, start, stop)
        try:
            values = _unpacked(self._file.bytes(), found.member, found.begin + found.spec.nbytes)
        except BadArchiveError as reason:
            raise CheckpointFormatError(f"{self.path}: array {name[:200]!a}: {reason}") from None
        raw = np.frombuffer(values, np.uint8)[found.begin :]
        if found.fortran and len(found.spec.shape) > 1:
            item = f"V{found.spec.dtype.bits // 8}"
            raw = raw.view(item).reshape(found.spec.shape, order="F").reshape(-1).view(np.uint8)
        return raw[start:stop]


def _array(data: npt.NDArray[np.uint8], member: Member) -> _Array:
    name = member.name.removesuffix(_TAIL)
    try:
        if member.stored:
            at = locate(data, member)
            head = data[at : at + min(member.size, _MAX_HEADER)].tobytes()
        else:
            head = _unpacked(data, member, min(member.size, _MAX_HEADER))
        described, begin = _header(head)
        shape, dtype = described["shape"], _dtype(described["descr"])
        spec = TensorSpec(name, dtype, shape)
        if spec.nbytes != member.size - begin:
            raise BadArchiveError(
                f"it has {member.size - begin} bytes of values, expected {spec.nbytes}"
            )
    except BadArchiveError as reason:
        raise BadArchiveError(f"array {name[:80]!a}: {reason}") from None
    return _Array(member, spec, described["fortran_order"], begin)


def _header(head: bytes) -> tuple[dict[str, Any], int]:
    """What the header of a `.npy` file says, and where its values begin."""
    if head[:6] != _MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise BadArchiveError("it is no .npy file")
    wide = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + wide], "little")
    begin = 8 + wide + length
    if begin > len(head):
        raise BadArchiveError("its header is cut off, or longer than 64 KiB")
    try:
        found = ast.literal_eval(head[8 + wide : begin].decode("latin1").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BadArchiveError("its header is no literal") from None
    if not isinstance(found, dict) or set(found) != {"descr", "fortran_order", "shape"}:
        raise BadArchiveError("its header lacks the type, the order or the shape")
    shape = found["shape"]
    counts = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if not counts or len(shape) > 64 or not isinstance(found["fortran_order"], bool):
        raise BadArchiveError("its shape is no tuple of sizes")
    return found, begin


def _dtype(descr: object) -> DType:
    if descr == "|O":
        raise BadArchiveError(
            "it is an array of objects, a pickle, which is not loaded: that would run its code; "
            "save arrays of numbers"
        )
    if descr in ("|V2", "<V2"):
        raise BadArchiveError(
            "its type has no name (NumPy writes bfloat16 so): save it as float32, or as safetensors"
        )
    try:
        if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
            raise ValueError(descr)
        return parse_dtype(np.dtype(descr).name)
    except (TypeError, ValueError):
        raise BadArchiveError(f"its type {str(descr)[:40]!a} is not supported") from None


def _unpacked(data: npt.NDArray[np.uint8], member: Member, size: int) -> bytes:
    """The first `size` bytes of a compressed member."""
    at, n_packed = packed_range(data, member)
    if member.size > n_packed * _MAX_RATIO:
        raise BadArchiveError("it claims more bytes than its packed ones can hold")
    try:
        found = zlib.decompressobj(-15).decompress(data[at : at + n_packed].data, max(size, 1))
    except zlib.error:
        raise BadArchiveError("its packed bytes are damaged") from None
    if len(found) < size:
        raise BadArchiveError("its packed bytes are cut off")
    crc = int.from_bytes(data[member.entry_at + 16 : member.entry_at + 20], "little")
    if size == member.size and zlib.crc32(found) != crc:
        raise BadArchiveError("its packed bytes are damaged")
    return found


class Npz(Format):
    """What `numpy.savez` and `numpy.savez_compressed` write."""

    name = "npz"
    summary = "an archive of NumPy"
    suffixes = (".npz",)
    writes = True
    remedy = "bfloat16 and arrays of objects have no place in it: write .safetensors"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By the name of the first member of the archive, or by its suffix."""
        if head.startswith(b"PK\x03\x04"):
            return head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(_TAIL.encode())
        return path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> NpzFile:
        """The file's arrays; `key` means nothing here."""
        return NpzFile(MappedFile(path))

    def plan(self, request: OutputRequest) -> OutputPlan:
        """One file, not compressed; tied tensors are written out under every name."""
        names = sorted(request.specs, key=natural_key)
        entries = [
            Entry(name + _TAIL, _npy_header(request.specs[name]), name, request.specs[name].nbytes)
            for name in names
        ]
        file = plan_archive(Path(request.path).name, entries)
        return OutputPlan(request=request, format=self.name, files=(file,))


def _npy_header(spec: TensorSpec) -> bytes:
    if spec.dtype.storage.itemsize * 8 != spec.dtype.bits or parse_dtype(
        spec.dtype.storage.name
    ) is not (spec.dtype):
        raise CheckpointError(
            f"{spec.name} is {spec.dtype.value}, which NumPy has no type for: write .safetensors, "
            "or say --dtype f32"
        )
    fields = {"descr": spec.dtype.storage.str, "fortran_order": False, "shape": spec.shape}
    text = repr(fields).encode()
    text += b" " * (-(10 + len(text) + 1) % ALIGNMENT) + b"\n"
    return _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text
