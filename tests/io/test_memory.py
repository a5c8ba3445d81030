"""The memory of this process."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from stockpot.io.memory import anonymous_bytes, fits_in_memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_what_is_allocated_and_touched_counts() -> None:
    before = anonymous_bytes()
    # Not of the allocator, which may have kept some of what other tests freed.
    held = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(bytes(64 << 20))
    assert anonymous_bytes() - before > len(held) * 0.9


def test_where_the_system_does_not_say_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Path, **_: object) -> str:
        return "Name: python\n"

    monkeypatch.setattr(Path, "read_text", silent)
    assert anonymous_bytes() == 0

    def absent(self: Path, **_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert anonymous_bytes() == 0


def test_a_petabyte_does_not_fit() -> None:
    assert fits_in_memory(1)
    assert not fits_in_memory(10**15)
