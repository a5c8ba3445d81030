"""What units read from stores, asked for ahead of them, so that requests run beside the sums."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stockpot.formats.base import Checkpoint
from stockpot.io.objects import PIECE_BYTES, RemoteFile

AHEAD_BYTES = 96 << 20
"""Bytes that are asked for ahead of the sums, about; 12 requests of the largest size."""

_Raw = npt.NDArray[np.uint8]
Fetched = dict[tuple[int, Checkpoint], Callable[[], _Raw]]
"""(number of the unit in its batch, ingredient) → a function that waits for its bytes."""


class Reads(Protocol):
    """A unit of work, as far as it reads."""

    @property
    def reads(self) -> Iterator[tuple[Checkpoint, str, int, int]]:
        """(ingredient, tensor, first byte, last byte + 1) of everything that it reads."""
        ...


_Unit = TypeVar("_Unit", bound=Reads)


def n_ahead(n_inputs: int, unit_bytes: int) -> int:
    """Bytes that wait ahead of the sums at most, where units read `unit_bytes` of each input."""
    return max(AHEAD_BYTES, n_inputs * unit_bytes) + PIECE_BYTES


def ahead(batches: Iterator[list[_Unit]]) -> Iterator[tuple[list[_Unit], Fetched]]:
    """`batches`, with what they read from stores on its way since before they were asked for."""
    waiting: deque[tuple[list[_Unit], Fetched, int]] = deque()
    n_bytes, more = 0, True
    while True:
        while more and (not waiting or n_bytes < AHEAD_BYTES):
            batch = next(batches, None)
            if batch is None:
                more = False
                break
            fetched, n = _fetch(batch)
            waiting.append((batch, fetched, n))
            # Local batches are no reason to go through all of them at once.
            n_bytes += n if n else AHEAD_BYTES
        if not waiting:
            return
        first, fetched, n = waiting.popleft()
        n_bytes -= n if n else AHEAD_BYTES
        yield first, fetched


def _fetch(batch: Sequence[Reads]) -> tuple[Fetched, int]:
    """Ask for what `batch` reads from stores, of each object together; and how many bytes it is."""
    wanted: dict[RemoteFile, list[tuple[tuple[int, Checkpoint], tuple[int, int]]]] = {}
    for index, unit in enumerate(batch):
        for source, name, start, stop in unit.reads:
            found = source.in_store(name)
            if found is not None:
                file, at = found
                wanted.setdefault(file, []).append(((index, source), (at + start, at + stop)))
    fetched: Fetched = {}
    for file, reads in wanted.items():
        waits = file.fetch([span for _, span in reads])
        fetched |= {key: wait for (key, _), wait in zip(reads, waits, strict=True)}
    return fetched, sum(b - a for reads in wanted.values() for _, (a, b) in reads)
