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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON, Progress, StrPath, format_bytes, no_progress
from stockpot.errors import MismatchError, Problem, RecipeError
from stockpot.formats.base import Checkpoint
from stockpot.formats.fingerprint import CHUNK_BYTES
from stockpot.formats.output import Output, OutputPlan
from stockpot.formats.uploading import open_output
from stockpot.io.atomic import dump_json
from stockpot.io.memory import anonymous_bytes, is_mapped, read_ahead
from stockpot.io.objects import is_remote
from stockpot.io.storage import FileId, require_unchanged
from stockpot.io.uploads import UPLOAD_BYTES
from stockpot.mixing.fetching import ahead, n_ahead
from stockpot.mixing.fingerprinting import ChunkHasher, FingerprintBuilder
from stockpot.mixing.rules.base import PIECE, Buffers, Raw, TensorPlan, item_bytes
from stockpot.tensors.compiled import guarded

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
        result: the mixture.
        tensors: how each tensor is made that is written, one of each tied group.
        output: the files.
        bytes_to_read: of all ingredients.
        bytes_to_write: the output on disk, side files included.
        memory: anonymous memory of this process while it runs, at most; files that are mapped for
            reading are the page cache's and do not count.
        threads: how many will run.
    """

    result: Checkpoint
    tensors: tuple[TensorPlan, ...]
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
        notes: a warning for each ingredient that holds what an earlier one holds, and so counts
            twice.
    """

    path: str
    bytes_read: int
    bytes_written: int
    seconds: float
    fingerprints: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Unit:
    """Items `start` to `stop` of one tensor."""

    tensor: TensorPlan
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """Bytes read and written."""
        n_sources = len(self.tensor.sources)
        sizes = [*self.tensor.item_sizes[:n_sources], item_bytes(self.tensor.spec)]
        return (self.stop - self.start) * sum(sizes)

    @property
    def reads(self) -> Iterator[tuple[Checkpoint, str, int, int]]:
        """Ingredient, tensor, first byte and last byte + 1 of all that is read."""
        tensor = self.tensor
        for source, size in zip(tensor.inputs, tensor.item_sizes, strict=True):
            yield source, tensor.source.name, self.start * size, self.stop * size


class PlanOptions(TypedDict, total=False):
    """How a mixture is written.

    Attributes:
        threads: most threads; fewer are used where `max_memory` does not hold as many. Default 2.
        max_memory: most anonymous memory of the whole process, bytes; None for no limit.
        config_from: the model folder whose side files a folder takes over.
        max_shard_bytes: most tensor bytes in one file of a folder.
    """

    threads: int
    max_memory: int | None
    config_from: StrPath | None
    max_shard_bytes: int | None


class SaveOptions(PlanOptions, total=False):
    """How a mixture is written, and what hears of it meanwhile.

    Attributes:
        force: overwrite an older output.
        progress: called with the bytes read and written so far.
        node: (rank, number) where several machines that share a disk make one folder together;
            see `nodes.save_part`.
        plan: what `Mixture.plan` returned for this output; without, it is made anew.
    """

    force: bool
    progress: Progress
    node: tuple[int, int]
    plan: MixPlan


@dataclass(frozen=True)
class Recording:
    """What is kept beside an output.

    Attributes:
        record: makes the record from what was done.
        card: makes the model card of a folder, from the record and the folder as it is by then.
    """

    record: Callable[[Saved], Mapping[str, JSON]] | None = None
    card: Callable[[Mapping[str, JSON], Path], str] | None = None


def plan_tensors(
    result: Checkpoint,
    tensors: Sequence[TensorPlan],
    output: OutputPlan,
    *,
    threads: int = 2,
    max_memory: int | None = None,
) -> MixPlan:
    """Decide how many threads make the `tensors` of `result`; reads and writes no values.

    Args:
        result: the mixture.
        tensors: how each tensor is made that is written, one of each tied group.
        output: the files.
        threads: see `PlanOptions`.
        max_memory: see `PlanOptions`.

    Raises:
        RecipeError: `max_memory` is less than the minimum, which is named.
    """
    if threads < 1:
        raise RecipeError(f"{threads} threads cannot do anything; expected at least 1")
    base = anonymous_bytes() + _BOOKKEEPING_BYTES + _digest_bytes(tensors)
    if is_remote(output.path):
        base += UPLOAD_BYTES
        # A store takes the bytes of an object in order.
        place = {
            name: (i, offset)
            for i, file in enumerate(output.files)
            for name, offset in file.offsets.items()
        }
        tensors = sorted(tensors, key=lambda tensor: place[tensor.spec.name])
    base += max((_ahead_bytes(tensor) for tensor in tensors), default=0)
    each = max((_thread_bytes(tensor) for tensor in tensors), default=0)
    if max_memory is not None:
        if base + each > max_memory:
            raise RecipeError(
                f"max_memory is {format_bytes(max_memory)}, and this mixture needs "
                f"{format_bytes(base + each)}, of which {format_bytes(base)} are Python, libraries "
                "and bookkeeping: allow at least that"
            )
        threads = min(threads, (max_memory - base) // max(each, 1))
    preparing = max((tensor.rule.prepare_bytes for tensor in tensors), default=0)
    return MixPlan(
        result=result,
        tensors=tuple(tensors),
        output=output,
        bytes_to_read=sum(tensor.n_bytes_read for tensor in tensors),
        bytes_to_write=output.n_bytes,
        memory=base + max(threads * each, preparing),
        threads=threads,
    )


def save_tensors(
    plan: MixPlan,
    ingredients: Sequence[Checkpoint],
    *,
    recording: Recording,
    force: bool = False,
    progress: Progress = no_progress,
) -> Saved:
    """Compute every tensor and write it; the output appears whole or not at all.

    Args:
        plan: made by `plan_tensors`, with the rules of its tensors prepared.
        ingredients: whose fingerprints are made on the way.
        recording: what is kept beside the output.
        force: see `SaveOptions`.
        progress: see `SaveOptions`.

    Raises:
        OutputExistsError: there is an output and `force` is false.
        MismatchError: buffers that differ; all of them are listed.
        NonFiniteError: NaN or infinity in an ingredient, or a mean that does not fit; the first
            tensor in the order of the output, and its first ingredient in the order given.
        CheckpointError: too little room on the disk, or a file changed while it was read.
    """
    began = time.perf_counter()
    fingerprints = FingerprintBuilder(ingredients, plan.result)
    with compute(plan, fingerprints, force=force, progress=progress) as output:
        with guarded():  # fingerprints read what the pass left out
            saved = Saved(
                path=plan.output.path,
                bytes_read=plan.bytes_to_read,
                bytes_written=plan.bytes_to_write,
                fingerprints=fingerprints.fingerprints(plan.threads),
                fingerprint=fingerprints.result(),
                seconds=time.perf_counter() - began,
            )
        require_unchanged(_files(plan))
        record = {} if recording.record is None else recording.record(saved)
        if record:
            output.record(dump_json(record))
        if recording.card is not None and output.folder is not None:
            output.card(recording.card(record, output.folder).encode())
    fingerprints.cache()
    return saved


@contextmanager
def compute(
    plan: MixPlan, fingerprints: FingerprintBuilder, *, force: bool, progress: Progress
) -> Iterator[Output]:
    """Compute and write all tensors of a plan; the output is put in place when the block ends.

    Raises:
        StockpotError: as `save_tensors`.
    """
    # Integers first: they are few, and all that differ are listed before hours are spent.
    copied = [tensor for tensor in plan.tensors if isinstance(tensor.rule, Buffers)]
    mixed = [tensor for tensor in plan.tensors if not isinstance(tensor.rule, Buffers)]
    files = _files(plan)
    with open_output(plan.output, force=force) as output:
        n_bytes = sum(unit.n_bytes for unit in _units(plan.tensors))
        run = _Run(output, fingerprints, progress, n_bytes, any(file.etag for file in files))
        with guarded():
            _all_problems(run.execute(_batches(copied), plan.threads))
            _first_problem(run.execute(_batches(mixed), plan.threads))
        require_unchanged(files)
        yield output


def _files(plan: MixPlan) -> set[FileId]:
    inputs = {one for tensor in plan.tensors for one in tensor.inputs}
    return {file for one in inputs for file in one.files}


def _thread_bytes(tensor: TensorPlan) -> int:
    unit = _unit_items(tensor) * item_bytes(tensor.spec)
    mask = tensor.spec.numel if tensor.mask is not None else 0
    name = tensor.source.name
    copied = sum(source[name].nbytes for source in tensor.inputs if source.computed)
    for source, size in zip(tensor.inputs, tensor.item_sizes, strict=True):
        if not source.computed and source.scattered(name):
            copied += 2 * min(_unit_items(tensor) * size, source[name].nbytes)
    # Of whole tensors: their values, and matrices of their size while they are decomposed.
    at_once = tensor.n_items if tensor.rule.is_whole else PIECE
    n_values = len(tensor.inputs) + (6 if tensor.rule.is_whole else 0)
    values = 0 if tensor.rule.is_linear else n_values * 8 * at_once
    return unit + _SCRATCH_BYTES + values + mask + copied


def _ahead_bytes(tensor: TensorPlan) -> int:
    """What is asked for of stores ahead of the sums."""
    n = sum(source.in_store(tensor.source.name) is not None for source in tensor.inputs)
    return n_ahead(n, _unit_items(tensor) * max(tensor.item_sizes)) if n else 0


def _digest_bytes(tensors: Sequence[TensorPlan]) -> int:
    return sum((t.n_bytes_read + t.spec.nbytes) // CHUNK_BYTES * 16 for t in tensors)


def _unit_items(tensor: TensorPlan) -> int:
    """Items of a whole unit: whole chunks of every input and of the output, or all."""
    if tensor.rule.is_whole:
        return max(1, tensor.n_items)
    return _UNIT_CHUNKS * CHUNK_BYTES // min(*tensor.item_sizes, item_bytes(tensor.spec))


def _units(tensors: Sequence[TensorPlan]) -> Iterator[_Unit]:
    for tensor in tensors:
        total, size = tensor.n_items, _unit_items(tensor)
        for start in range(0, max(total, 1), size):
            yield _Unit(tensor, start, min(start + size, total))


def _batches(tensors: Sequence[TensorPlan]) -> Iterator[list[_Unit]]:
    """Units, the small ones together, so that a thread's turn is worth taking."""
    batch: list[_Unit] = []
    n_bytes = 0
    for unit in _units(tensors):
        batch.append(unit)
        n_bytes += unit.n_bytes
        if n_bytes >= CHUNK_BYTES or len(batch) >= 64:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


class _ThreadState:
    """What one thread keeps from unit to unit: a result, open mappings, an unpacked mask."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._held: dict[int, tuple[Checkpoint, str, Raw]] = {}
        self._mask: tuple[str, npt.NDArray[np.bool_]] | None = None

    def buffer(self, n_bytes: int) -> Raw:
        """Memory for a result; its pages are touched for the first time once only."""
        if self._buffer.size < n_bytes:
            self._buffer = np.empty(n_bytes, np.uint8)
        return self._buffer[:n_bytes]

    def raw(
        self, place: int, source: Checkpoint, name: str, start: int, stop: int
    ) -> tuple[Raw, int]:
        """Bytes of a tensor that hold those from `start` to `stop`, and where they begin.

        A file stays mapped while a piece of it is held, and a tensor of a mixture is computed once:
        the last tensor of each place is held on to. Of one that lies scattered in its file, only
        what is asked for is gathered.
        """
        if source.scattered(name):
            return source.part(name, start, stop), start
        last = self._held.get(place)
        if last is not None and last[0] is source and last[1] == name:
            return last[2], 0
        raw = source.raw(name)
        self._held[place] = (source, name, raw)
        return raw, 0

    def kept(self, tensor: TensorPlan) -> npt.NDArray[np.bool_] | None:
        """The mask of a tensor, flat; unpacked once for all units that follow each other."""
        if tensor.mask is None:
            return None
        if self._mask is None or self._mask[0] != tensor.spec.name:
            self._mask = (tensor.spec.name, tensor.mask.kept(tensor.source.name).reshape(-1))
        return self._mask[1]


@dataclass
class _Run:
    """One execution. It has state because threads share what is done and what has failed."""

    output: Output
    fingerprints: FingerprintBuilder
    progress: Progress
    total: int
    in_store: bool
    done: int = 0
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, batches: Iterator[list[_Unit]], threads: int) -> _Failures:
        """Work through `batches`; the failures by the batch's number.

        Batches are handed out in order and those handed out are finished, so the first failure is
        the same for any number of threads.
        """
        failures: _Failures = {}
        numbered = enumerate(ahead(batches) if self.in_store else ((one, {}) for one in batches))

        def work() -> None:
            state = _ThreadState()
            while True:
                with self.lock:
                    number, (batch, fetched) = next(numbered, (-1, ([], {})))
                    if number < 0 or self.failed:
                        return
                for index, unit in enumerate(batch):
                    try:
                        came = {s: wait for (i, s), wait in fetched.items() if i == index}
                        self._make(unit, state, came)
                    except Exception as error:  # of any kind: it ends the run and is raised there
                        failures[number, index] = error
                        # Buffers go on, so that all that differ are listed.
                        if not isinstance(unit.tensor.rule, Buffers):
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

    def _make(
        self, unit: _Unit, state: _ThreadState, came: Mapping[Checkpoint, Callable[[], Raw]]
    ) -> None:
        tensor = unit.tensor
        out_size = item_bytes(tensor.spec)
        result = state.buffer((unit.stop - unit.start) * out_size)
        if tensor.is_written:
            tensor.sources[0].write_into(tensor.source.name, result, unit.start * out_size)
        else:
            self._combine(unit, state, came, result)
        self.fingerprints.add_output(tensor.spec, unit.start * out_size, result)
        self.output.write(tensor.spec.name, unit.start * out_size, result.data)

    def _combine(
        self,
        unit: _Unit,
        state: _ThreadState,
        came: Mapping[Checkpoint, Callable[[], Raw]],
        result: Raw,
    ) -> None:
        """Put the items of a unit into `result`, from those of its inputs."""
        tensor = unit.tensor
        sizes, out_size = tensor.item_sizes, item_bytes(tensor.spec)
        raws = [
            (came[source](), start) if source in came else state.raw(i, source, name, start, stop)
            for i, (source, name, start, stop) in enumerate(unit.reads)
        ]
        hashers = {
            source: (ChunkHasher(self.fingerprints, source, source[name], start), i)
            for i, (source, name, start, _) in enumerate(unit.reads)
            if self.fingerprints.hashes(source)
        }
        _bring_in(unit, [raw for raw, _ in raws], sizes)
        kept = state.kept(tensor)
        for start, stop in tensor.pieces(unit.start, unit.stop):
            parts = [
                raw[start * n - at : stop * n - at]
                for (raw, at), n in zip(raws, sizes, strict=True)
            ]
            for hasher, i in hashers.values():
                hasher.update(parts[i])
            out = result[(start - unit.start) * out_size : (stop - unit.start) * out_size]
            tensor.make(parts, out, None if kept is None else kept[start:stop], start)
        for hasher, _ in hashers.values():
            hasher.close()


def _bring_in(unit: _Unit, raws: Sequence[Raw], sizes: Sequence[int]) -> None:
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
