"""The directory of stored zip archives, as the library writes it and as damage leaves it."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest

from stockpot.formats import zipped
from stockpot.formats.zipped import BadArchiveError, locate

MEMBERS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(200)), "a/empty": b""}


def archive(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def opened(data: bytes) -> dict[str, bytes]:
    array = np.frombuffer(data, np.uint8)
    found = {}
    for name, member in zipped.directory(array).items():
        at = locate(array, member)
        found[name] = data[at : at + member.size]
    return found


def test_members_are_found_where_the_standard_library_put_them() -> None:
    assert opened(archive(MEMBERS)) == MEMBERS


def test_zip64_fields_are_read_as_those_of_files_beyond_4_gib(monkeypatch) -> None:
    # The library then writes all sizes, offsets and the directory's place as it does for big files.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = archive(MEMBERS)
    assert b"PK\x06\x06" in data
    assert opened(data) == MEMBERS


def test_a_zip64_directory_that_lies_outside_or_elsewhere_is_damage(monkeypatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    data = archive(MEMBERS)
    end = data.rindex(b"PK\x05\x06")
    # What does not fit into 32 bits is said by the zip64 record alone.
    data = data[: end + 16] + b"\xff" * 4 + data[end + 20 :]
    assert opened(data) == MEMBERS
    locator = data.rindex(b"PK\x06\x07")
    for at, message in ((len(data), "outside"), (4, "damaged")):
        moved = data[: locator + 8] + struct.pack("<Q", at) + data[locator + 16 :]
        with pytest.raises(BadArchiveError, match=message):
            zipped.directory(np.frombuffer(moved, np.uint8))


def test_one_of_several_volumes_is_refused() -> None:
    data = archive(MEMBERS)
    end = data.rindex(b"PK\x05\x06")
    with pytest.raises(BadArchiveError, match="volumes"):
        zipped.directory(
            np.frombuffer(data[: end + 4] + struct.pack("<H", 3) + data[end + 6 :], np.uint8)
        )


def test_a_file_that_was_cut_off_says_so() -> None:
    with pytest.raises(BadArchiveError, match="cut off"):
        zipped.directory(np.frombuffer(archive(MEMBERS)[:-40], np.uint8))


def test_a_directory_that_is_not_where_the_end_says_is_damage() -> None:
    data = archive(MEMBERS)
    end = data.rindex(b"PK\x05\x06")
    for offset, message in ((len(data), "outside"), (0, "damaged")):
        moved = data[: end + 16] + struct.pack("<L", offset) + data[end + 20 :]
        with pytest.raises(BadArchiveError, match=message):
            zipped.directory(np.frombuffer(moved, np.uint8))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("x", b"1")
        made.writestr("x", b"2")
    with pytest.raises(BadArchiveError, match="twice"):
        zipped.directory(np.frombuffer(file.getvalue(), np.uint8))


def test_compressed_members_are_listed_and_refused_when_read() -> None:
    with pytest.raises(BadArchiveError, match="compressed"):
        opened(archive({"x": b"a" * 100}, method=zipfile.ZIP_DEFLATED))


def test_a_local_header_that_is_elsewhere_or_outside_is_damage() -> None:
    data = archive({"x": b"12345"})
    central = data.index(b"PK\x01\x02")
    for at, message in ((1, "not where"), (len(data) - 2, "outside")):
        moved = data[: central + 42] + struct.pack("<L", at) + data[central + 46 :]
        with pytest.raises(BadArchiveError, match=message):
            opened(moved)
