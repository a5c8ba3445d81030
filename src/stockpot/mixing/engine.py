"""The streaming engine: one pass over all ingredients, in bounded memory.

Tensors are cut into units of at least 4 MiB, and small ones are put together; threads take units in
order, read their parts of every ingredient through the page cache, compute, and write the result to
its final place. Every unit is computed alone, so that neither the number of threads nor the memory
allowed changes a bit. The bytes that pass by are hashed on the way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON, Progress, StrPath, format_bytes, no_progress
from stockpot.errors import MismatchError, Problem, RecipeError
from stockpot.formats.base import Checkpoint
from stockpot.formats.fingerprint import CHUNK_BYTES
from stockpot.formats.output import Output, OutputPlan, open_output, plan_output
from stockpot.io.atomic import dump_json
from stockpot.io.memory import anonymous_bytes, is_mapped, read_ahead
from stockpot.mixing.hashing import ChunkHasher, Tally
from stockpot.mixing.mixture import Mixture
from stockpot.mixing.rules import PIECE, TensorRule, item_bytes, make, n_items

_Raw = npt.NDArray[np.uint8]
_Failures = dict[tuple[int, int], Exception]

_SCRATCH_BYTES = 16 * 8 * PIECE
"""Most that arithmetic holds at a time: sums with a coefficient for each element."""
_BOOKKEEPING_BYTES = 1 << 21
_UNIT_CHUNKS = 4
"""Of 1 MiB. Writes of 4 MiB took half of the kernel's time that writes of 1 MiB took."""


@dataclass(frozen=True)
class MixPlan:
    """What saving a mixture reads, writes and needs.

    Attributes:
        output: the files.
        bytes_to_read: of all ingredients.
        bytes_to_write: the output on disk, side files included.
        memory: anonymous memory of this process while it runs, at most; files that are mapped for
            reading are the page cache's and do not count.
        threads: how many will run.
    """

    output: OutputPlan
    bytes_to_read: int
    bytes_to_write: int
    memory: int
    threads: int


@dataclass(frozen=True)
class Saved:
    """What saving a mixture did.

    Attributes:
        path: the output.
        bytes_read: of all ingredients.
        bytes_written: to the output.
        seconds: wall time.
        fingerprints: of the ingredients, in the order given.
        fingerprint: of the output.
    """

    path: str
    bytes_read: int
    bytes_written: int
    seconds: float
    fingerprints: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Unit:
    """Items `start` to `stop` of one tensor."""

    rule: TensorRule
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """Bytes read and written."""
        items = self.stop - self.start
        read = items * item_bytes(self.rule.source) * len(self.rule.sources)
        return read + items * item_bytes(self.rule.spec)


def plan_mixture(
    mixture: Mixture,
    path: StrPath,
    *,
    threads: int = 2,
    max_memory: int | None = None,
    config_from: StrPath | None = None,
    max_shard_bytes: int | None = None,
) -> MixPlan:
    """Decide the output's files and the threads; reads and writes no values.

    Args:
        path: the output; see `plan_output`.
        threads: most threads; fewer are used where `max_memory` does not hold as many.
        max_memory: most anonymous memory of the whole process, bytes; None for no limit.
        config_from: the model folder whose side files a folder takes over.
        max_shard_bytes: most tensor bytes in one file of a folder.

    Raises:
        RecipeError: `max_memory` is less than the minimum, which is named.
    """
    if threads < 1:
        raise RecipeError(f"{threads} threads cannot do anything; expected at least 1")
    rules = [mixture.rule(name) for name in _names(mixture)]
    base = anonymous_bytes() + _BOOKKEEPING_BYTES + _digest_bytes(rules)
    each = max((_thread_bytes(rule) for rule in rules), default=0)
    if max_memory is not None:
        if base + each > max_memory:
            raise RecipeError(
                f"max_memory is {format_bytes(max_memory)}, and this mixture needs "
                f"{format_bytes(base + each)}, of which {format_bytes(base)} are Python, libraries "
                "and bookkeeping: allow at least that"
            )
        threads = min(threads, (max_memory - base) // max(each, 1))
    given = [*mixture.ingredients]
    output = plan_output(
        path,
        dict(mixture),
        tied=mixture.tied,
        metadata=mixture.metadata,
        like=mixture.ingredients.donor,
        config_from=config_from,
        max_shard_bytes=max_shard_bytes,
        inputs=[source.path for source in given],
    )
    return MixPlan(
        output=output,
        bytes_to_read=sum(rule.n_bytes_read for rule in rules),
        bytes_to_write=output.n_bytes,
        memory=base + threads * each,
        threads=threads,
    )


def save_mixture(
    mixture: Mixture,
    plan: MixPlan,
    *,
    force: bool = False,
    progress: Progress = no_progress,
    record: Callable[[Saved], Mapping[str, JSON]] | None = None,
    card: Callable[[Mapping[str, JSON], Path], str] | None = None,
) -> Saved:
    """Compute every tensor and write it; the output appears whole or not at all.

    Args:
        mixture: what to compute.
        plan: made by `plan_mixture` of the same mixture.
        force: overwrite an older output.
        progress: told the bytes read and written so far.
        record: makes the record that is kept with the output, from what was done.
        card: makes the model card of a folder, from the record and the folder as it is by then.

    Raises:
        OutputExistsError: there is an output and `force` is false.
        MismatchError: buffers that differ; all of them are listed.
        NonFiniteError: NaN or infinity in an ingredient, or a mean that does not fit; the first
            tensor in the order of the output, and its first ingredient in the order given.
        CheckpointError: too little room on the disk.
    """
    began = time.perf_counter()
    # Integers first: they are few, and all that differ are listed before hours are spent.
    rules = sorted((mixture.rule(name) for name in _names(mixture)), key=_averaged_last)
    tally = Tally([*mixture.ingredients], mixture)
    with open_output(plan.output, force=force) as output:
        run = _Run(output, tally, progress, sum(unit.n_bytes for unit in _units(rules)))
        split = next((i for i, rule in enumerate(rules) if rule.kind != "buffer"), len(rules))
        _all_problems(run.execute(_batches(rules[:split]), plan.threads))
        _first_problem(run.execute(_batches(rules[split:]), plan.threads))
        saved = Saved(
            path=plan.output.path,
            bytes_read=plan.bytes_to_read,
            bytes_written=plan.bytes_to_write,
            fingerprints=tally.fingerprints(),
            fingerprint=tally.result(),
            seconds=time.perf_counter() - began,
        )
        recorded = {} if record is None else record(saved)
        if recorded:
            output.record(dump_json(recorded))
        if card is not None and output.folder is not None:
            output.card(card(recorded, output.folder).encode())
    tally.remember()
    return saved


def _names(mixture: Mixture) -> Iterator[str]:
    """Names that are computed and written: one of each tied group."""
    repeated = {name for group in mixture.tied for name in group[1:]}
    return (name for name in mixture if name not in repeated)


def _averaged_last(rule: TensorRule) -> bool:
    return rule.kind != "buffer"


def _thread_bytes(rule: TensorRule) -> int:
    unit = _unit_items(rule) * item_bytes(rule.spec)
    mask = rule.spec.numel if rule.mask is not None else 0
    copied = sum(rule.source.nbytes for source in rule.sources if source.computed)
    return unit + _SCRATCH_BYTES + mask + copied


def _digest_bytes(rules: list[TensorRule]) -> int:
    return sum((rule.n_bytes_read + rule.spec.nbytes) // CHUNK_BYTES * 16 for rule in rules)


def _unit_items(rule: TensorRule) -> int:
    """Items of a whole unit: whole chunks of the input and of the output."""
    return _UNIT_CHUNKS * CHUNK_BYTES // min(item_bytes(rule.source), item_bytes(rule.spec))


def _units(rules: list[TensorRule]) -> Iterator[_Unit]:
    for rule in rules:
        total, size = n_items(rule.source), _unit_items(rule)
        for start in range(0, max(total, 1), size):
            yield _Unit(rule, start, min(start + size, total))


def _batches(rules: list[TensorRule]) -> Iterator[list[_Unit]]:
    """Units, the small ones together, so that a thread's turn is worth taking."""
    batch: list[_Unit] = []
    n_bytes = 0
    for unit in _units(rules):
        batch.append(unit)
        n_bytes += unit.n_bytes
        if n_bytes >= CHUNK_BYTES or len(batch) >= 64:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


class _Hands:
    """What one thread keeps from unit to unit, because making it anew would be slow."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._held: dict[int, tuple[Checkpoint, str, _Raw]] = {}
        self._mask: tuple[str, npt.NDArray[np.bool_]] | None = None

    def buffer(self, n_bytes: int) -> _Raw:
        """Memory for a result; its pages are touched for the first time once only."""
        if self._buffer.size < n_bytes:
            self._buffer = np.empty(n_bytes, np.uint8)
        return self._buffer[:n_bytes]

    def raw(self, place: int, source: Checkpoint, name: str) -> _Raw:
        """The bytes of a tensor; those of each place's last tensor are held on to.

        A file stays mapped while a piece of it is held, and a tensor of a mixture is computed once.
        """
        last = self._held.get(place)
        if last is not None and last[0] is source and last[1] == name:
            return last[2]
        raw = source.raw(name)
        self._held[place] = (source, name, raw)
        return raw

    def kept(self, rule: TensorRule) -> npt.NDArray[np.bool_] | None:
        """The mask of a tensor, flat; unpacked once for all units that follow each other."""
        if rule.mask is None:
            return None
        if self._mask is None or self._mask[0] != rule.spec.name:
            self._mask = (rule.spec.name, rule.mask.kept(rule.source.name).reshape(-1))
        return self._mask[1]


@dataclass
class _Run:
    """One execution. It has state because threads share what is done and what has failed."""

    output: Output
    tally: Tally
    progress: Progress
    total: int
    done: int = 0
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, batches: Iterator[list[_Unit]], threads: int) -> _Failures:
        """Work through `batches`; the failures by the batch's number.

        Batches are handed out in order and those handed out are finished, so the first failure is
        the same for any number of threads.
        """
        failures: _Failures = {}
        numbered = enumerate(batches)

        def work() -> None:
            hands = _Hands()
            while True:
                with self.lock:
                    number, batch = next(numbered, (-1, []))
                    if number < 0 or self.failed:
                        return
                for index, unit in enumerate(batch):
                    try:
                        self._make(unit, hands)
                    except Exception as error:  # of any kind: it ends the run and is raised there
                        failures[number, index] = error
                        # Buffers go on, so that all that differ are listed.
                        if unit.rule.kind != "buffer":
                            self.failed = True
                            break
                with self.lock:
                    self.done += sum(unit.n_bytes for unit in batch)
                    self.progress(self.done, self.total, "bytes")

        try:
            with ThreadPoolExecutor(threads) as pool:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
        finally:
            self.failed = True
        self.failed = False
        return failures

    def _make(self, unit: _Unit, hands: _Hands) -> None:
        rule = unit.rule
        raws = [
            hands.raw(i, source, rule.source.name)
            for i, source in enumerate((*rule.sources, *rule.elements))
        ]
        sizes = [rule.item_bytes_in(i) for i in range(len(raws))]
        hashers = {
            source: (ChunkHasher(self.tally, source, rule.source, unit.start * sizes[i]), i)
            for i, source in enumerate(rule.sources)
            if self.tally.hashes(source)
        }
        out_size = item_bytes(rule.spec)
        result = hands.buffer((unit.stop - unit.start) * out_size)
        _bring_in(unit, raws, sizes)
        kept = hands.kept(rule)
        for start in range(unit.start, unit.stop, PIECE):
            stop = min(start + PIECE, unit.stop)
            parts = [raw[start * n : stop * n] for raw, n in zip(raws, sizes, strict=True)]
            for hasher, i in hashers.values():
                hasher.update(parts[i])
            out = result[(start - unit.start) * out_size : (stop - unit.start) * out_size]
            here = None if kept is None else kept[start:stop]
            make(rule, parts, out, kept=here)
        for hasher, _ in hashers.values():
            hasher.close()
        self.tally.made(rule.spec, unit.start * out_size, result)
        self.output.write(rule.spec.name, unit.start * out_size, result.data)


def _bring_in(unit: _Unit, raws: Sequence[_Raw], sizes: Sequence[int]) -> None:
    """Map the pages of a unit, and have the disk read those of the units after the next."""
    mapped = [(raw, n) for raw, n in zip(raws, sizes, strict=True) if is_mapped(raw)]
    n_items_ahead = unit.stop - unit.start
    for raw, n in mapped:
        first = unit.start if unit.start == 0 else unit.start + 2 * n_items_ahead
        read_ahead(raw[first * n : (unit.start + 3 * n_items_ahead) * n], wait=False)
    for raw, n in mapped:
        read_ahead(raw[unit.start * n : unit.stop * n], wait=True)


def _first_problem(failures: _Failures) -> None:
    if failures:
        raise failures[min(failures)]


def _all_problems(failures: _Failures) -> None:
    mismatches = [
        error for _, error in sorted(failures.items()) if isinstance(error, MismatchError)
    ]
    if len(mismatches) < len(failures) or len(mismatches) == 1:
        _first_problem(failures)
    if mismatches:
        problems: list[Problem] = [problem for error in mismatches for problem in error.problems]
        raise MismatchError("\n".join(str(error) for error in mismatches), problems)
