"""Content hashes that do not depend on file layout, shards, or container format."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot._records import read_regular
from stockpot._types import StrPath
from stockpot.io.files import open_file
from stockpot.io.paths import cache_dir
from stockpot.io.storage import NO_ETAG, FileId, require_unchanged
from stockpot.tensors.compiled import guarded
from stockpot.tensors.spec import TensorSpec

CHUNK_BYTES = 1 << 20
"""A tensor is hashed in chunks of this many bytes, so that threads can share it."""

_CACHE_VERSION = 1
_HEX = re.compile(r"[0-9a-f]{32}")
_ENTRY_BYTES = 64
_GROUP_BYTES = 64 << 20
_HEAD_BYTES = 4096


class Values(Protocol):
    """Tensors with their specs and the files they are from: a `Checkpoint`."""

    @property
    def files(self) -> tuple[FileId, ...]:
        """As `Checkpoint.files`."""
        ...

    @property
    def section(self) -> str:
        """As `Checkpoint.section`."""
        ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str, /) -> TensorSpec: ...

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """As `Checkpoint.raw`."""
        ...

    def reader(self, name: str) -> Callable[[int, int], npt.NDArray[np.uint8]]:
        """As `Checkpoint.reader`."""
        ...

    def pieces(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[npt.NDArray[np.uint8]]:
        """As `Checkpoint.pieces`."""
        ...


def chunk_digest(data: object) -> bytes:
    """XXH3-128 of one chunk: 16 bytes. `data` is anything with the buffer protocol.

    Other threads run while a large chunk is hashed.
    """
    return xxhash.xxh3_128_digest(data)  # type: ignore[arg-type]


def combine(specs: Mapping[str, TensorSpec], digests: Mapping[str, Sequence[bytes]]) -> str:
    """The fingerprint of a checkpoint whose tensors' chunk digests are known: 32 hex digits.

    `digests[name]` holds the `chunk_digest` of every `CHUNK_BYTES` of that tensor, in order; none
    for an empty tensor. Lengths are hashed too, so that no two lists of fields run together.
    """
    state = xxhash.xxh3_128()
    for name in sorted(specs):
        chunks = b"".join(digests[name])
        for field in (_head(specs[name]), chunks):
            state.update(len(field).to_bytes(8, "little") + field)
    return state.hexdigest()


def _head(spec: TensorSpec) -> bytes:
    return f"{spec.name}\0{spec.dtype.value}\0{','.join(map(str, spec.shape))}".encode()


def fingerprint(checkpoint: Values, *, cache: StrPath | None = None, threads: int = 2) -> str:
    """The fingerprint of `checkpoint`: 32 hex digits.

    Taken from the cache when its files are as they were when it was made; else made in one pass
    over all values, and put there.

    Args:
        cache: the folder of the cache; by default the user's.
        threads: how many hash at once; the result does not depend on it.
    """
    known = cached_fingerprint(checkpoint, cache=cache)
    if known is not None:
        return known
    specs = {name: checkpoint[name] for name in checkpoint}
    with guarded():
        made = combine(specs, _digests(checkpoint, threads))
    require_unchanged(checkpoint.files)
    store_fingerprint(checkpoint, made, cache=cache)
    return made


def _digests(checkpoint: Values, threads: int) -> dict[str, list[bytes]]:
    from concurrent.futures import ThreadPoolExecutor

    digests: dict[str, list[bytes]] = {name: [] for name in checkpoint}
    # Handed out in groups: a queue of every chunk of a 140 GB model would be long, and tensors
    # that have to be copied first must not pile up.
    pieces: list[tuple[str, object]] = []
    held = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:

        def flush() -> None:
            made = pool.map(chunk_digest, [piece for _, piece in pieces])
            for (name, _), digest in zip(pieces, made, strict=True):
                digests[name].append(digest)
            pieces.clear()

        for name in checkpoint:
            read = checkpoint.reader(name)
            for start in range(0, checkpoint[name].nbytes, CHUNK_BYTES):
                pieces.append((name, read(start, start + CHUNK_BYTES)))
                held += CHUNK_BYTES
                if held >= _GROUP_BYTES or len(pieces) >= 4096:
                    flush()
                    held = 0
        flush()
    return digests


def head_digest(checkpoint: Values) -> bytes:
    """XXH3-128 of the specs and of the first 4 KiB of every tensor: a few pages of a file."""
    state = xxhash.xxh3_128()
    names = sorted(checkpoint)
    heads = checkpoint.pieces((name, 0, _HEAD_BYTES) for name in names)
    for name, head in zip(names, heads, strict=True):
        spec = checkpoint[name]
        state.update(f"{name}\0{spec.dtype.value}\0{spec.shape}\0".encode())
        state.update(head.tobytes())
    return state.digest()


def head_mark(checkpoint: Values) -> str:
    """`head_digest` as a record has it, of a base that is too large to be read for its name."""
    return f"heads:{head_digest(checkpoint).hex()}"


def has_fingerprint(checkpoint: Values, value: str) -> bool:
    """Whether a record that holds `value` means `checkpoint`: by its content, or by its heads."""
    own = head_mark(checkpoint) if value.startswith("heads:") else fingerprint(checkpoint)
    return own == value


def cached_fingerprint(checkpoint: Values, *, cache: StrPath | None = None) -> str | None:
    """The fingerprint of `checkpoint` if the cache knows it; its values are not read.

    None for a checkpoint in memory, which may change at any time.
    """
    place = _cache_file(checkpoint, cache)
    if place is None:
        return None
    try:
        text = read_regular(place, _ENTRY_BYTES).decode("ascii").strip()
    except (OSError, ValueError):  # absent, damaged, or no file
        return None
    return text if _HEX.fullmatch(text) else None


def store_fingerprint(checkpoint: Values, value: str, *, cache: StrPath | None = None) -> None:
    """Put a fingerprint that was made elsewhere, in a pass that summed, into the cache.

    Nothing is stored for a checkpoint in memory, for files that changed since they were opened, or
    where the folder cannot be written: a cache may be missing.
    """
    place = _cache_file(checkpoint, cache)
    if place is None or any(_changed(file) for file in checkpoint.files):
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        # In its place at once: a temporary name would stay behind when the process is killed, and
        # half a fingerprint is as good as none. Never through a link: what is there goes first.
        place.unlink(missing_ok=True)
        descriptor = open_file(place, "create")
        try:
            os.write(descriptor, value.encode("ascii") + b"\n")
        finally:
            os.close(descriptor)


def _changed(file: FileId) -> bool:
    if file.etag:
        return False
    try:
        return FileId.of(file.path, os.stat(file.path)) != file  # noqa: PTH116
    except OSError:
        return True


def _cache_file(checkpoint: Values, cache: StrPath | None) -> Path | None:
    # A server without ETags does not say whether an object is the one that it was.
    if not checkpoint.files or any(file.etag == NO_ETAG for file in checkpoint.files):
        return None
    files = [
        [f.path, f.size, *([f.etag] if f.etag else [f.mtime_ns, f.ctime_ns, f.inode])]
        for f in checkpoint.files
    ]
    key = json.dumps([_CACHE_VERSION, checkpoint.section, files])
    name = xxhash.xxh3_128_hexdigest(key.encode(errors="surrogateescape"))
    return Path(cache_dir() if cache is None else cache) / "fingerprints" / name


def sha256(checkpoint: Values) -> str:
    """SHA-256 of the names, dtypes, shapes and values of `checkpoint`: 64 hex digits.

    For records that must withstand forgery, which XXH3 does not; 15 times slower. As independent
    of layout and shards as `fingerprint`, and not the hash of any file.
    """
    import hashlib

    state = hashlib.sha256()
    for name in sorted(checkpoint):
        head = _head(checkpoint[name])
        raw = checkpoint.raw(name)
        state.update(len(head).to_bytes(8, "little") + head + raw.size.to_bytes(8, "little"))
        state.update(raw.data)
    return state.hexdigest()
