"""Calls of the kernel: they do what they say where it knows them, and nothing where it does not."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stockpot.io import kernel as _kernel


@pytest.fixture
def without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    # `_function` remembers what it found.
    monkeypatch.setattr(_kernel, "_function", _kernel._function.__wrapped__)


def test_a_reserved_file_is_as_long_as_asked_and_has_its_blocks(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        _kernel.reserve(file.fileno(), 3_000_001)
        status = os.fstat(file.fileno())
        in_memory = _kernel._in_memory(file.fileno())
    assert status.st_size == 3_000_001
    if _kernel._function("fallocate") is not None and not in_memory:
        assert status.st_blocks * 512 >= 3_000_001


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or _kernel._function("fstatfs") is None,
    reason="no files in memory here",
)
def test_a_file_in_memory_is_not_filled_with_zeros_first() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        Path(folder, "file").open("w+b") as file,
    ):
        assert _kernel._in_memory(file.fileno())
        _kernel.reserve(file.fileno(), 3_000_001)
        status = os.fstat(file.fileno())
    assert status.st_size == 3_000_001
    assert status.st_blocks * 512 < 3_000_001


def test_nothing_is_reserved_for_an_empty_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        _kernel.reserve(file.fileno(), 0)
        assert os.fstat(file.fileno()).st_size == 0


def test_a_full_disk_is_told_when_room_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel, "_call", lambda *_: errno.ENOSPC)
    with (
        (tmp_path / "file").open("w+b") as file,
        pytest.raises(OSError, match="No space") as caught,
    ):
        _kernel.reserve(file.fileno(), 10)
    assert caught.value.errno == errno.ENOSPC


def test_a_file_system_that_cannot_promise_room_gives_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel, "_call", lambda *_: errno.EOPNOTSUPP)
    with (tmp_path / "file").open("w+b") as file:
        _kernel.reserve(file.fileno(), 10)
        assert os.fstat(file.fileno()).st_size == 10


@pytest.mark.usefixtures("without_the_kernel")
def test_another_system_does_without(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        _kernel.reserve(file.fileno(), 10)
        _kernel.flush_async(file.fileno(), 0, 10)
        assert os.fstat(file.fileno()).st_size == 10
    _kernel.populate(0, 0)
    assert _kernel._call("madvise", 0, 0, 0) == errno.ENOSYS


def test_errors_of_the_kernel_come_back_as_numbers(tmp_path: Path) -> None:
    here = _kernel._function("sync_file_range") is not None
    assert _kernel._call("sync_file_range", -1, 0, 1, 2) == (errno.EBADF if here else errno.ENOSYS)


def test_pages_can_be_asked_for_and_written_out(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(bytes(range(256)) * 64)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            held = (ctypes.c_char * len(mapped)).from_buffer(mapped)
            address = ctypes.addressof(held)
            _kernel.prefetch(address, len(mapped))
            _kernel.populate(address, len(mapped))
            del held
            assert mapped[255] == 255
        _kernel.flush_async(file.fileno(), 0, 1 << 14)
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read(3) == b"\0\1\2"


PAGES = """
import resource, sys
from stockpot.io.kernel import keep_freed_memory

for _ in range(int(sys.argv[1])):
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * (64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(calls: int, **environment: str) -> int:
    """Of ten blocks of 64 MiB one after the other, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in _kernel._ALLOCATOR}
    src = str(Path(_kernel.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PAGES, str(calls)], capture_output=True, text=True, check=True,
        env={**clean, "PYTHONPATH": src, **environment},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(_kernel._function("mallopt") is None, reason="another C library")
def test_what_is_freed_is_used_again() -> None:
    given_back, kept = page_faults(0), page_faults(1)
    assert kept < given_back / 3
    # The user has said how the allocator is to work.
    assert page_faults(1, MALLOC_TRIM_THRESHOLD_="131072") > given_back / 2
