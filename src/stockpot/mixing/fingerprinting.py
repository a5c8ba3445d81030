"""Fingerprints of inputs and output, made from the bytes that pass by while they are summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot._types import JSON
from stockpot.errors import CheckpointError
from stockpot.formats.base import Checkpoint
from stockpot.formats.fingerprint import (
    CHUNK_BYTES,
    cached_fingerprint,
    chunk_digest,
    combine,
    store_fingerprint,
)
from stockpot.mixing.reconcile import ReconciledCheckpoint
from stockpot.tensors.spec import TensorSpec

_Raw = npt.NDArray[np.uint8]

_DIGEST_BYTES = 16


class FingerprintBuilder:
    """Chunk digests of one pass. It has state because several threads hand them in, in any order.

    Nothing is hashed of checkpoints whose fingerprint is cached already. No lock is needed: each
    chunk has a place of its own.
    """

    def __init__(self, ingredients: Sequence[Checkpoint], output: Checkpoint) -> None:
        self._ingredients = ingredients
        self._output = output
        # Of a checkpoint under other names, the one is fingerprinted that its path leads to.
        self._origins = {source: source.origin for source in ingredients}
        self._known = {one: cached_fingerprint(one) for one in self._origins.values()}
        self._seen: dict[Checkpoint, dict[str, bytearray]] = {
            source: {} for source, known in self._known.items() if known is None
        }
        self._made: dict[str, bytearray] = {}

    def hashes(self, source: Checkpoint) -> bool:
        """Whether the bytes of `source` should be handed to `add_input`."""
        return self._origins.get(source, source) in self._seen

    def add_input(self, source: Checkpoint, spec: TensorSpec, offset: int, digest: bytes) -> None:
        """Take the digest of the chunk at byte `offset` of tensor `spec` of `source`."""
        origin = self._origins[source]
        while isinstance(source, ReconciledCheckpoint):
            if spec.name not in source.stored:  # made of rows of several: read apart
                return
            spec, source = replace(spec, name=source.stored[spec.name]), source.source
        _put(self._seen[origin], spec, offset, digest)

    def add_output(self, spec: TensorSpec, offset: int, data: _Raw) -> None:
        """Hash `data`, whole chunks at byte `offset` of tensor `spec` of the output."""
        for start in range(0, data.size, CHUNK_BYTES):
            digest = chunk_digest(data[start : start + CHUNK_BYTES])
            _put(self._made, spec, offset + start, digest)

    def fingerprints(self, threads: int = 1) -> tuple[str, ...]:
        """The fingerprints of the ingredients, in order; what the pass left out is read now.

        Args:
            threads: that read.
        """

        def finish(source: Checkpoint) -> None:
            seen = self._seen[source]
            for name in source:
                if name not in seen:
                    seen[name] = _from_tied(source, seen, name) or _read(source, name)
            self._known[source] = _combined(source, seen)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(finish, self._seen))
        return tuple(str(self._known[self._origins[source]]) for source in self._ingredients)

    def result(self) -> str:
        """The fingerprint of the output."""
        leaders = self._output.leaders
        empty = bytearray()
        made = {name: self._made.get(leaders.get(name, name), empty) for name in self._output}
        return _combined(self._output, made)

    def digests(self) -> dict[str, JSON]:
        """What was handed in so far, to be given to `merge` of another builder of the same."""
        origins = list(self._known)
        seen: list[JSON] = [
            None
            if one not in self._seen
            else {name: bytes(of).hex() for name, of in self._seen[one].items()}
            for one in origins
        ]
        made = {name: bytes(of).hex() for name, of in self._made.items()}
        return {"known": [self._known[one] for one in origins], "seen": seen, "made": {**made}}

    def merge(self, digests: Any) -> None:
        """Take what `digests` of another builder gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            for origin, known, seen in zip(
                list(self._known), digests["known"], digests["seen"], strict=True
            ):
                if isinstance(known, str) and self._seen.pop(origin, None) is not None:
                    self._known[origin] = known
                elif seen is not None and origin in self._seen:
                    found = {name: bytearray.fromhex(text) for name, text in seen.items()}
                    self._seen[origin].update(found)
            made = {name: bytearray.fromhex(text) for name, text in digests["made"].items()}
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the digests of a part are damaged: {error}") from error
        self._made.update(made)

    def cache(self) -> None:
        """Put the fingerprints that were made into the cache."""
        for source in self._seen:
            store_fingerprint(source, str(self._known[source]))


class ChunkHasher:
    """The digest of one chunk that arrives in pieces."""

    def __init__(
        self, builder: FingerprintBuilder, source: Checkpoint, spec: TensorSpec, offset: int
    ) -> None:
        self._builder, self._source, self._spec, self._offset = builder, source, spec, offset
        self._state = xxhash.xxh3_128()
        self._length = 0

    def update(self, piece: _Raw) -> None:
        """Take the next piece, of any length."""
        while piece.size:
            part = piece[: CHUNK_BYTES - self._length]
            piece = piece[part.size :]
            self._state.update(part.data)
            self._length += part.size
            if self._length == CHUNK_BYTES:
                self.close()

    def close(self) -> None:
        """Hand in the digest of what has arrived since the last chunk, if anything has."""
        if self._length == 0:
            return
        self._builder.add_input(self._source, self._spec, self._offset, self._state.digest())
        self._offset += self._length
        self._length = 0
        self._state.reset()


def _put(digests: dict[str, bytearray], spec: TensorSpec, offset: int, digest: bytes) -> None:
    n_chunks = -(-spec.nbytes // CHUNK_BYTES)
    # setdefault is atomic, and all threads come with the same length.
    place = digests.setdefault(spec.name, bytearray(n_chunks * _DIGEST_BYTES))
    start = offset // CHUNK_BYTES * _DIGEST_BYTES
    place[start : start + _DIGEST_BYTES] = digest


def _from_tied(source: Checkpoint, seen: Mapping[str, bytearray], name: str) -> bytearray | None:
    group = next((group for group in source.tied if name in group), ())
    return next((seen[other] for other in group if other in seen), None)


def _read(source: Checkpoint, name: str) -> bytearray:
    read = source.reader(name)
    starts = range(0, source[name].nbytes, CHUNK_BYTES)
    return bytearray(b"".join(chunk_digest(read(at, at + CHUNK_BYTES)) for at in starts))


def _combined(specs: Mapping[str, TensorSpec], digests: Mapping[str, bytearray]) -> str:
    return combine(specs, {name: [bytes(joined)] for name, joined in digests.items()})
