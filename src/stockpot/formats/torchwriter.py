"""The layout of a `.pt` file, made without torch and without holding a tensor.

A torch file is a zip archive of stored (not compressed) records: a pickle that describes the
tensors, and one record per storage. All of it but the values and their checksums follows from the
specs, so it can be laid out first and filled in any order. The archive name and the dates are fixed
and the pickle is written here opcode by opcode: equal tensors give equal bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot.errors import CheckpointError
from stockpot.formats.base import leaders_of
from stockpot.formats.output import PlannedFile
from stockpot.formats.toolkits import Instance, Surroundings, Weights
from stockpot.io.paths import natural_key
from stockpot.tensors.spec import TensorSpec

_ARCHIVE = "archive"
_ALIGNMENT = 64  # of values in the file, as torch has it, so that they can be mapped
_LIMIT_32 = 0xFFFFFFFF
# 1 January 1980, the first day that a zip file knows.
_DOS_DATE, _DOS_TIME = 0x21, 0
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class _Record:
    name: bytes
    header_at: int
    data_at: int
    size: int
    crc: int

    @property
    def crc_at(self) -> int:
        return self.header_at + 14


def plan_file(
    name: str,
    specs: Mapping[str, TensorSpec],
    tied: Iterable[Sequence[str]] = (),
    *,
    around: Surroundings | None = None,
) -> PlannedFile:
    """The plan of a file that `torch.load(weights_only=True)` reads as an `OrderedDict`.

    Tensors come in natural order, contiguous; the names of a tied group share one storage,
    whose offset stands under the group's first name.

    Raises:
        CheckpointError: torch has no tensors of some type in it.
    """
    ordered = [specs[key] for key in sorted(specs, key=natural_key)]
    for spec in ordered:
        if spec.dtype.torch_name is None:
            raise CheckpointError(
                f"{spec.name} is {spec.dtype}, which torch files cannot hold: write .safetensors"
            )
    owner = leaders_of(tied)
    stored = [spec for spec in ordered if owner.get(spec.name, spec.name) == spec.name]
    keys = {spec.name: str(i) for i, spec in enumerate(stored)}
    state = _state_dict(ordered, {key: keys[owner.get(key, key)] for key in specs})
    root = state if around is None else _value(around.root, state)
    pickled = b"\x80\x02" + root + b"."
    small = [
        ("data.pkl", pickled),
        (".format_version", b"1"),
        (".storage_alignment", str(_ALIGNMENT).encode()),
        ("byteorder", b"little"),
    ]
    fixed: list[tuple[int, bytes]] = []
    records: list[_Record] = []
    end = 0

    def add(member: str, size: int, crc: int = 0) -> _Record:
        nonlocal end
        header, record = _local_header(f"{_ARCHIVE}/{member}".encode(), end, size, crc)
        fixed.append((end, header))
        records.append(record)
        end = record.data_at + size
        return record

    for member, data in small:
        fixed.append((add(member, len(data), zlib.crc32(data)).data_at, data))
    values = {spec.name: add(f"data/{keys[spec.name]}", spec.nbytes) for spec in stored}
    fixed.append((add("version", 2, zlib.crc32(b"3\n")).data_at, b"3\n"))
    directory, crc_at = _central_directory(records, end)
    fixed.append((end, directory))
    return PlannedFile(
        name=name,
        size=end + len(directory),
        offsets={key: record.data_at for key, record in values.items()},
        fixed=tuple(fixed),
        checksums={key: (rec.crc_at, crc_at[rec.name]) for key, rec in values.items()},
    )


def _local_header(name: bytes, at: int, size: int, crc: int) -> tuple[bytes, _Record]:
    big = size >= _LIMIT_32
    extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
    # Values are aligned by a field of padding, which takes four bytes of its own.
    unpadded = at + 30 + len(name) + len(extra) + 4
    padding = -unpadded % _ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    shown = _LIMIT_32 if big else size
    header = struct.pack(
        "<4s5H3I2H",
        b"PK\x03\x04", 45 if big else 20, _UTF8, 0, _DOS_TIME, _DOS_DATE,
        crc, shown, shown, len(name), len(extra),
    )  # fmt: skip
    return header + name + extra, _Record(name, at, unpadded + padding, size, crc)


def _central_directory(records: Sequence[_Record], at: int) -> tuple[bytes, dict[bytes, int]]:
    """The directory that ends the archive, and where in the file each record's CRC32 stands."""
    crc_at: dict[bytes, int] = {}
    parts: list[bytes] = []
    length = 0
    for record in records:
        wide = []
        size = offset = _LIMIT_32
        if record.size >= _LIMIT_32:
            wide += [record.size, record.size]
        else:
            size = record.size
        if record.header_at >= _LIMIT_32:
            wide += [record.header_at]
        else:
            offset = record.header_at
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = 45 if wide else 20
        crc_at[record.name] = at + length + 16
        fields = struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02", version, version, _UTF8, 0, _DOS_TIME, _DOS_DATE,
            record.crc, size, size, len(record.name), len(extra), 0, 0, 0, 0, offset,
        )  # fmt: skip
        parts.append(fields + record.name + extra)
        length += len(parts[-1])
    body = b"".join(parts)
    n = len(records)
    tail = b""
    if at >= _LIMIT_32 or n >= 0xFFFF or length >= _LIMIT_32:
        tail = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, length, at)
        tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + length, 1)
    count = min(n, 0xFFFF)
    tail += struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, min(length, _LIMIT_32), min(at, _LIMIT_32), 0
    )
    return body + tail, crc_at


def _state_dict(specs: Sequence[TensorSpec], keys: Mapping[str, str]) -> bytes:
    """`OrderedDict(name → tensor)` pickled in protocol 2, with the opcodes that torch allows."""
    parts = [_global("collections", "OrderedDict"), b")R("]
    for spec in specs:
        parts += [_text(spec.name), _tensor(spec, keys[spec.name])]
    return b"".join([*parts, b"u"])


def _value(value: object, state: bytes) -> bytes:
    """A value of `Surroundings.root`, with the pickled `state` dict where the weights go."""
    if isinstance(value, Weights):
        return state
    if isinstance(value, Instance):
        module, _, name = value.origin.rpartition(".")
        made = _global(module, name) + b")\x81"
        made += _items(value.items, state)
        return made + (_value(value.state, state) + b"b" if value.state else b"")
    if isinstance(value, dict):
        return b"}" + _items(value, state)
    if isinstance(value, list):
        return b"](" + b"".join(_value(item, state) for item in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(_value(item, state) for item in value) + b"t"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return _int(value) if isinstance(value, int) else _text(str(value))


def _items(items: Mapping[Any, Any], state: bytes) -> bytes:
    if not items:
        return b""
    pairs = (_value(key, state) + _value(item, state) for key, item in items.items())
    return b"(" + b"".join(pairs) + b"u"


def _tensor(spec: TensorSpec, key: str) -> bytes:
    strides, step = [], 1
    for size in reversed(spec.shape):
        strides.append(step)
        step *= max(size, 1)
    typed = spec.dtype.torch_storage
    storage = [
        _text("storage"),
        _global("torch", typed) if typed else _global("torch.storage", "UntypedStorage"),
        _text(key),
        _text("cpu"),
        _int(spec.numel if typed else spec.nbytes),
    ]
    arguments = [
        b"(" + b"".join(storage) + b"tQ",
        _int(0),
        b"(" + b"".join(map(_int, spec.shape)) + b"t",
        b"(" + b"".join(map(_int, reversed(strides))) + b"t",
        b"\x89",  # requires_grad=False
        _global("collections", "OrderedDict") + b")R",  # no backward hooks
    ]
    if not typed:
        arguments.append(_global("torch", str(spec.dtype.torch_name)))
    build = _global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    return build + b"(" + b"".join(arguments) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if 0 <= value < 0x100:
        return b"K" + struct.pack("<B", value)
    if -0x80000000 <= value < 0x80000000:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(data)) + data
