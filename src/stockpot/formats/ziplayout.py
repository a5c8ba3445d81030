"""The layout of a zip archive of stored members, some of whose bytes are filled in later.

Names, sizes and dates are fixed, so that equal contents give equal bytes. Values are aligned by a
field of padding, as torch has it, so that they can be mapped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from stockpot.errors import CheckpointError
from stockpot.formats.output import PlannedFile

ALIGNMENT = 64
"""Of values in the file."""
_LIMIT_16, _LIMIT_32 = 0xFFFF, 0xFFFFFFFF
# 1 January 1980, the first day that a zip file knows.
_DOS_DATE, _DOS_TIME = 0x21, 0
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of an archive: `head`, and behind it the `size` bytes of a tensor, if it has one."""

    name: str
    head: bytes = b""
    tensor: str | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    name: bytes
    header_at: int
    data_at: int
    size: int
    crc: int


def plan_archive(name: str, entries: Sequence[Entry]) -> PlannedFile:
    """The plan of an archive with these members, in this order.

    Raises:
        CheckpointError: a name is longer than an archive can hold.
    """
    fixed: list[tuple[int, bytes]] = []
    records: list[_Record] = []
    end = 0
    for entry in entries:
        crc = 0 if entry.tensor is not None else zlib.crc32(entry.head)
        size = len(entry.head) + entry.size
        header, record = _local_header(_encoded(name, entry), end, size, crc)
        fixed += [(end, header), (record.data_at, entry.head)] if entry.head else [(end, header)]
        records.append(record)
        end = record.data_at + size
    directory, crc_at = _central_directory(records, end)
    fixed.append((end, directory))
    offsets, checksums, summed = {}, {}, []
    for entry, record, at in zip(entries, records, crc_at, strict=True):
        if entry.tensor is None:
            continue
        slots = (record.header_at + 14, at)
        offsets[entry.tensor] = record.data_at + len(entry.head)
        if entry.head:
            summed.append((record.data_at, record.data_at + record.size, slots))
        else:
            checksums[entry.tensor] = slots
    return PlannedFile(
        name=name,
        size=end + len(directory),
        offsets=offsets,
        fixed=tuple(fixed),
        checksums=checksums,
        summed=tuple(summed),
    )


def _encoded(archive: str, entry: Entry) -> bytes:
    found = entry.name.encode()
    if len(found) > _LIMIT_16:
        raise CheckpointError(
            f"{archive}: the name {entry.name[:80]!r}... has {len(found)} bytes, and a zip archive "
            f"holds names of at most {_LIMIT_16}: write .safetensors"
        )
    return found


def _local_header(name: bytes, at: int, size: int, crc: int) -> tuple[bytes, _Record]:
    big = size >= _LIMIT_32
    extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
    # Values are aligned by a field of padding, which takes four bytes of its own.
    unpadded = at + 30 + len(name) + len(extra) + 4
    padding = -unpadded % ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    shown = _LIMIT_32 if big else size
    header = struct.pack(
        "<4s5H3I2H",
        b"PK\x03\x04", 45 if big else 20, _UTF8, 0, _DOS_TIME, _DOS_DATE,
        crc, shown, shown, len(name), len(extra),
    )  # fmt: skip
    return header + name + extra, _Record(name, at, unpadded + padding, size, crc)


def _central_directory(records: Sequence[_Record], at: int) -> tuple[bytes, list[int]]:
    """The directory that ends the archive, and where in the file each record's CRC32 stands."""
    crc_at: list[int] = []
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
        crc_at.append(at + length + 16)
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
    if at >= _LIMIT_32 or n >= _LIMIT_16 or length >= _LIMIT_32:
        tail = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, length, at)
        tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + length, 1)
    count = min(n, _LIMIT_16)
    tail += struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, min(length, _LIMIT_32), min(at, _LIMIT_32), 0
    )
    return body + tail, crc_at
