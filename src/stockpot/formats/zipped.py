"""Where the stored members of a zip archive lie, without unpacking anything.

Format: PKWARE APPNOTE 6.3, §4.3 (with zip64). Only the directory at the end is read. The standard
library's zipfile makes objects of about thirteen times the bytes of a directory, raises half a
dozen kinds of errors on damaged ones, and reads through a handle of its own; here the cost is in
proportion, and all is read from the one mapping whose identity was checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_END = struct.Struct("<4s4H2LH")
_END64_AT = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ALL_32 = 0xFFFFFFFF


class BadArchiveError(Exception):
    """Why the bytes are no archive that can be read; the caller knows the file."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive.

    Attributes:
        header_at: where its local header begins.
        size: bytes that it has.
        stored: whether they lie there as they are.
        packed: bytes that lie there, if they are deflated; None for another compression.
        entry_at: where the directory's entry of it begins.
    """

    name: str
    header_at: int
    size: int
    stored: bool
    packed: int | None = None
    entry_at: int = 0

    @property
    def checksums_at(self) -> tuple[int, int]:
        """Where its CRC32 stands, twice."""
        return self.header_at + 14, self.entry_at + 16


def directory(data: npt.NDArray[np.uint8]) -> dict[str, Member]:
    """The members of the archive whose bytes are `data`, by name.

    Raises:
        BadArchiveError: it is damaged, truncated, or in several volumes.
    """
    start, length, count = _find_directory(data)
    if start + length > data.size:
        raise BadArchiveError("its directory lies outside of the file")
    table = data[start : start + length].tobytes()
    members: dict[str, Member] = {}
    at = 0
    while at + _CENTRAL.size <= length:
        begin = at
        member, at = _member(table, at)
        member = replace(member, entry_at=start + begin)
        if member.name in members:
            raise BadArchiveError(f"it holds {member.name[:80]!r} twice")
        members[member.name] = member
    if at != length or (len(members) & 0xFFFF) != (count & 0xFFFF):
        raise BadArchiveError("its directory is damaged")
    return members


def _find_directory(data: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Start, length and number of entries of the directory."""
    tail_at = max(0, data.size - _END.size - 0xFFFF)
    tail = data[tail_at:].tobytes()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise BadArchiveError("its directory is missing (cut off while copying?)")
    _, disk, first_disk, _, count, length, start, _ = _END.unpack_from(tail, at)
    locator = tail_at + at - _END64_AT.size
    if _ALL_32 in (length, start) or count == 0xFFFF:
        if locator < 0:
            raise BadArchiveError("its directory is damaged")
        magic, _, at64, _ = _END64_AT.unpack(data[locator : locator + _END64_AT.size].tobytes())
        if magic == b"PK\x06\x07":
            if at64 + _END64.size > data.size:
                raise BadArchiveError("its directory lies outside of the file")
            fields = _END64.unpack(data[at64 : at64 + _END64.size].tobytes())
            if fields[0] != b"PK\x06\x06":
                raise BadArchiveError("its directory is damaged")
            disk, first_disk, count, length, start = fields[4], fields[5], *fields[7:10]
    if disk or first_disk:
        raise BadArchiveError("it is one of several volumes")
    return start, length, count


def _member(table: bytes, at: int) -> tuple[Member, int]:
    fields = _CENTRAL.unpack_from(table, at)
    if fields[0] != b"PK\x01\x02":
        raise BadArchiveError("its directory is damaged")
    flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header_at = *fields[10:13], fields[16]
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_length
    end = extra_at + extra_length + comment_length
    if end > len(table):
        raise BadArchiveError("its directory is damaged")
    extra = table[extra_at : extra_at + extra_length]
    size, packed, header_at = _zip64(extra, [size, packed, header_at])
    name = table[name_at:extra_at].decode("utf-8", "replace")
    stored = method == 0 and not flags & 1 and packed == size
    deflated = method == 8 and not flags & 1
    return Member(name, header_at, size, stored, packed if deflated else None), end


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """`values`, with those that do not fit into 32 bits taken from the zip64 field."""
    if _ALL_32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            for index, value in enumerate(values):
                if value == _ALL_32 and len(field) >= 8:
                    values[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
            break
        at += 4 + length
    return values


def locate(data: npt.NDArray[np.uint8], member: Member) -> int:
    """Where the bytes of `member` begin; all `member.size` of them lie in the file.

    Raises:
        BadArchiveError: it is compressed or encrypted, or lies outside of the file.
    """
    if not member.stored:
        raise BadArchiveError(f"{member.name[:80]!r} is compressed or encrypted, expected stored")
    return _begin(data, member, member.size)


def packed_range(data: npt.NDArray[np.uint8], member: Member) -> tuple[int, int]:
    """Where the deflated bytes of `member` begin, and how many there are.

    Raises:
        BadArchiveError: it is compressed otherwise or encrypted, or lies outside of the file.
    """
    if member.packed is None:
        raise BadArchiveError(f"{member.name[:80]!r} is compressed in a way that is not read")
    return _begin(data, member, member.packed), member.packed


def _begin(data: npt.NDArray[np.uint8], member: Member, n_bytes: int) -> int:
    at = member.header_at
    if at + _LOCAL.size > data.size:
        raise BadArchiveError(f"{member.name[:80]!r} lies outside of the file")
    fields = _LOCAL.unpack(data[at : at + _LOCAL.size].tobytes())
    if fields[0] != b"PK\x03\x04":
        raise BadArchiveError(f"{member.name[:80]!r} is not where the directory says")
    start = int(at + _LOCAL.size + fields[9] + fields[10])
    if start + n_bytes > data.size:
        raise BadArchiveError(f"{member.name[:80]!r} lies outside of the file")
    return start
