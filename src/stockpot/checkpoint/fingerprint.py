"""Content hashes that do not depend on file layout, shards, or container format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import xxhash

from stockpot.checkpoint.spec import TensorSpec

if TYPE_CHECKING:
    from stockpot.checkpoint.base import Checkpoint

__all__ = ["CHUNK_BYTES", "chunk_digest", "combine", "fingerprint"]

CHUNK_BYTES = 1 << 20
"""A tensor is hashed in chunks of this many bytes, so that threads can share it."""


def chunk_digest(data: object) -> bytes:
    """XXH3-128 of one chunk: 16 bytes. `data` is anything with the buffer protocol."""
    return xxhash.xxh3_128_digest(data)  # type: ignore[arg-type]


def combine(specs: Mapping[str, TensorSpec], digests: Mapping[str, Sequence[bytes]]) -> str:
    """The fingerprint of a checkpoint whose tensors' chunk digests are known: 32 hex digits.

    `digests[name]` holds the `chunk_digest` of every `CHUNK_BYTES` of that tensor, in order; none
    for an empty tensor. Lengths are hashed too, so that no two lists of fields run together.
    """
    state = xxhash.xxh3_128()
    for name in sorted(specs):
        spec = specs[name]
        head = f"{name}\0{spec.dtype.value}\0{','.join(map(str, spec.shape))}".encode()
        state.update(len(head).to_bytes(8, "little") + head)
        chunks = b"".join(digests[name])
        state.update(len(chunks).to_bytes(8, "little") + chunks)
    return state.hexdigest()


def fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint of `checkpoint`, from one pass over all of its values."""
    return combine(checkpoint, {name: list(_digests(checkpoint, name)) for name in checkpoint})


def _digests(checkpoint: Checkpoint, name: str) -> Iterator[bytes]:
    raw = checkpoint.raw(name)
    for start in range(0, raw.size, CHUNK_BYTES):
        yield chunk_digest(raw[start : start + CHUNK_BYTES])
