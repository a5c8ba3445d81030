"""Local files: copied in blocks, compared, and never waited for."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.io import storage
from stockpot.io.storage import (
    MappedFile,
    MappedRange,
    copy_file,
    open_regular,
    require_unchanged,
    same_content,
    stays_inside,
)


def test_a_copy_has_the_bytes_and_the_holes_and_takes_no_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    # Where holes cannot be asked for, all of them is read.
    size = 4 << 30 if hasattr(os, "SEEK_DATA") else 128 << 20
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(100 << 20)
        file.write(b"middle")
        file.truncate(size)
    tracemalloc.start()
    copy_file(source, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert target.stat().st_size == size
    assert target.stat().st_blocks * 512 < 64 << 20
    with target.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(100 << 20)
        assert file.read(6) == b"middle"


@pytest.mark.parametrize("size", [0, 1, 10, 11])
def test_contents_are_compared_block_by_block(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_COPY_BYTES", 4)
    (tmp_path / "a").write_bytes(bytes(size))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert same_content(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").write_bytes(bytes(size) + b"x")
    assert not same_content(tmp_path / "a", tmp_path / "b")
    if size:
        (tmp_path / "b").write_bytes(bytes(size - 1) + b"x")
        assert not same_content(tmp_path / "a", tmp_path / "b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(CheckpointFormatError, match="not a regular file"):
            open_regular(path)


def test_a_path_is_inside_a_folder_only_if_its_target_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").touch()
    (tmp_path / "out").touch()
    (tmp_path / "in" / "link").symlink_to("../out")
    (tmp_path / "alias").symlink_to("in")
    assert stays_inside(tmp_path / "in" / "file", tmp_path / "alias")
    assert not stays_inside(tmp_path / "in" / "link", tmp_path / "in")
    assert not stays_inside(tmp_path / "in" / ".." / "out", tmp_path / "in")


def _give_a_second_name(path: Path) -> None:
    path.with_name("second").hardlink_to(path)


def _touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))


def _replace(path: Path) -> None:
    found = path.stat()
    path.with_name("new").write_bytes(path.read_bytes())
    os.utime(path.with_name("new"), ns=(found.st_atime_ns, found.st_mtime_ns))
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o600), _give_a_second_name])
def test_other_rights_and_names_are_no_change_of_a_file(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = MappedFile(path)
    part = MappedRange(file, 3, 4)
    change(path)
    assert file.bytes().tobytes() == b"0123456789"
    assert part.bytes().tobytes() == b"3456"
    require_unchanged([file.id, part.id])


@pytest.mark.parametrize("change", [_touch, _replace, lambda path: path.write_bytes(b"longer" * 9)])
def test_a_file_that_was_written_to_or_replaced_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = MappedFile(path)
    change(path)
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        file.bytes()
    with pytest.raises(CheckpointError, match="changed while it was read"):
        require_unchanged([file.id])


def test_a_file_is_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "file").write_bytes(b"here")
    monkeypatch.chdir(tmp_path / "here")
    file = MappedFile("file")
    part = MappedRange(file, 1, 2)
    monkeypatch.chdir(tmp_path / "there")
    assert file.bytes().tobytes() == b"here"
    assert part.bytes().tobytes() == b"er"
    Path("file").write_bytes(b"theirs")
    assert file.bytes().tobytes() == b"here"
    require_unchanged([file.id])
