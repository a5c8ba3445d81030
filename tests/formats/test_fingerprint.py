"""Fingerprints: what they depend on, what they do not, and when the cache is believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import stockpot.formats as cp
from stockpot.formats.fingerprint import (
    CHUNK_BYTES,
    cached_fingerprint,
    chunk_digest,
    combine,
    fingerprint,
    sha256,
    store_fingerprint,
)

STATE = {
    "b": np.arange(700_000, dtype=np.float32),
    "a": np.ones((2, 3), np.float16),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_it_depends_on_content_and_not_on_order_or_container(path: Path) -> None:
    found = cp.open(path).fingerprint
    assert found == cp.from_state_dict(dict(reversed(STATE.items()))).fingerprint
    assert found == fingerprint(cp.from_state_dict(STATE), threads=4)


@pytest.mark.parametrize(
    "change",
    [
        {"a": np.ones((3, 2), np.float16)},
        {"a": np.ones((2, 3), np.float16).view(np.int16)},
        {"c": np.zeros(1, np.float32)},
        {"b": np.arange(700_000, dtype=np.float32) + np.eye(1, 700_000, 699_999, np.float32)[0]},
    ],
)
def test_shape_dtype_names_and_last_value_count(change: dict[str, np.ndarray]) -> None:
    one, other = cp.from_state_dict(STATE), cp.from_state_dict({**STATE, **change})
    assert one.fingerprint != other.fingerprint
    assert sha256(one) != sha256(other)


def test_chunks_hashed_elsewhere_combine_to_the_same(path: Path) -> None:
    checkpoint = cp.open(path)
    digests = {
        name: [
            chunk_digest(checkpoint.raw(name)[at : at + CHUNK_BYTES])
            for at in range(0, checkpoint[name].nbytes, CHUNK_BYTES)
        ]
        for name in checkpoint
    }
    assert len(digests["b"]) == 3
    assert combine(checkpoint, digests) == checkpoint.fingerprint


def test_peeking_makes_nothing_and_a_stored_one_is_found(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert cached_fingerprint(cp.open(path), cache=cache) is None
    store_fingerprint(cp.open(path), "0123456789abcdef" * 2, cache=cache)
    assert fingerprint(cp.open(path), cache=cache) == "0123456789abcdef" * 2


def test_a_file_that_changed_is_hashed_again_even_with_its_old_time(path: Path) -> None:
    before = cp.open(path).fingerprint
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cp.open(path).fingerprint != before


def test_nothing_is_stored_for_a_file_that_changed_since_it_was_opened(
    path: Path, tmp_path: Path
) -> None:
    opened = cp.open(path)
    os.utime(path, ns=(0, 0))
    store_fingerprint(opened, "f" * 32, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_or_unwritable_cache_is_as_none(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    right = fingerprint(cp.open(path), cache=cache)
    (entry,) = (cache / "fingerprints").iterdir()
    entry.write_bytes(b"\xff half")
    assert fingerprint(cp.open(path), cache=cache) == right
    (tmp_path / "file").touch()
    assert fingerprint(cp.open(path), cache=tmp_path / "file") == right


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("planted", ["link", "device", "pipe", "half"])
def test_what_stands_in_the_place_of_an_entry_is_replaced(
    path: Path, tmp_path: Path, planted: str
) -> None:
    cache = tmp_path / "cache"
    right = fingerprint(cp.open(path), cache=cache)
    (entry,) = (cache / "fingerprints").iterdir()
    entry.unlink()
    if planted == "pipe":
        os.mkfifo(entry)
    elif planted == "half":  # what a killed process may leave
        entry.write_text(right[:7])
    else:
        entry.symlink_to("/dev/zero" if planted == "device" else tmp_path / "thesis")
    (tmp_path / "thesis").write_text("my thesis")
    assert fingerprint(cp.open(path), cache=cache) == right
    assert (tmp_path / "thesis").read_text() == "my thesis"
    assert not entry.is_symlink()
    assert entry.read_text() == right + "\n"
    assert list((cache / "fingerprints").iterdir()) == [entry]


def test_values_in_memory_are_hashed_anew_each_time() -> None:
    state = {"w": np.zeros(3, np.float32)}
    checkpoint = cp.from_state_dict(state)
    before = checkpoint.fingerprint
    state["w"][0] = 1
    assert checkpoint.fingerprint != before
    assert cached_fingerprint(checkpoint) is None
