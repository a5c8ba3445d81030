"""`stockpot compress` and `expand`: checkpoints into the sparse-bitmask layout and back.

A tensor is stored sparse if its name ends in `.weight`, as the layout wants it, if it is of a
floating type and not 0-d, and if that makes it smaller; all others stay as they are. Values pass by
in pieces of about a million elements, once to be counted and once to be written. −0.0 comes back as
+0.0, every other value bit for bit, NaN included.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot._records import read_regular
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import CheckpointError
from stockpot.formats.base import Checkpoint, agreed_metadata
from stockpot.formats.encodings import (
    PARTS,
    CompressedCheckpoint,
    Rows,
    is_compressed,
    part_specs,
    row_blocks,
)
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.output import Output, OutputPlan, OutputRequest, open_output
from stockpot.formats.placement import plan_output
from stockpot.formats.table import MODEL_FOLDER, SAFETENSORS, output_format, record_path
from stockpot.io.storage import stays_inside
from stockpot.tensors.rounding import nonzero
from stockpot.tensors.spec import TensorSpec

_PIECE_BYTES = 4 << 20
# Names, shapes and offsets of three tensors more in the header.
_HEADER_BYTES = 300


@dataclass(frozen=True)
class Stored:
    """What compressing or expanding did.

    Attributes:
        path: the output.
        bytes: that it takes on disk, side files included.
        dense_bytes: of all tensors, stored dense.
        sparsity: share of zeros in the tensors that are (or were) stored sparse, 0..1.
        n_sparse: how many tensors that is.
        n_tensors: of all.
        left_dense: names of tensors of at least half zeros that stay dense, because the layout
            holds names in `.weight` only.
        seconds: wall time.
    """

    path: str
    bytes: int
    dense_bytes: int
    sparsity: float
    n_sparse: int
    n_tensors: int
    left_dense: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on."""
        return {
            "output": self.path,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "sparsity": self.sparsity,
            "sparse_tensors": self.n_sparse,
            "tensors": self.n_tensors,
            "left_dense": list(self.left_dense),
            "seconds": self.seconds,
        }


def compress(
    source: StrPath | Checkpoint,
    path: StrPath,
    *,
    force: bool = False,
    key: str | None = None,
    config_from: StrPath | None = None,
    max_shard_bytes: int | None = None,
    progress: Progress = no_progress,
) -> Stored:
    """Write `source` with its sparse tensors as bitmasks and values; a record goes with it.

    Memory does not grow with the model: one piece of one tensor is held at a time.

    Args:
        source: a checkpoint with exact zeros.
        path: a `.safetensors` file, or a folder; the layout has no torch form.
        force: overwrite an older output.
        key: the section of a torch file.
        config_from: the model folder whose side files a folder takes over.
        max_shard_bytes: most tensor bytes in one file of a folder.
        progress: called with the bytes looked at, of two passes.

    Raises:
        CheckpointError: nothing in it gets smaller, it is compressed already, or the output cannot
            hold the layout.
        OutputExistsError: there is an output and `force` is false.
    """
    began = time.perf_counter()
    given = open_checkpoint(source, key=key) if not isinstance(source, Checkpoint) else source
    _refuse_to_compress(given, path)
    passed = _Passed(progress, 2 * sum(spec.nbytes for spec in given.values()))
    counts = {name: _count(given, name, passed) for name in given}
    sparse = {
        name: n for name, n in counts.items() if n is not None and _is_smaller(given[name], n)
    }
    left_dense = [n for n, count in counts.items() if n not in sparse and _half(given[n], count)]
    zeros = sum(given[name].numel - n for name, n in sparse.items())
    elements = sum(given[name].numel for name in sparse)
    if not sparse:
        raise CheckpointError(_nothing_sparse(given, counts, left_dense))
    plan = plan_output(
        OutputRequest(
            path=path,
            specs=_stored_specs(given, sparse),
            metadata=agreed_metadata([given]),
            like=given,
            config_from=config_from,
            max_shard_bytes=max_shard_bytes,
            inputs=(given,),
            quantization=_layout(zeros / elements, given, sparse),
        )
    )
    with open_output(plan, force=force) as output:
        for name in given:
            if name in sparse:
                _write_sparse(output, given, name, sparse[name], passed)
            else:
                _write_dense(output, given, name, passed)
        _copy_record(given, output)
    return _stored(plan, given, zeros / elements, len(sparse), left_dense, began)


def expand(
    source: StrPath | Checkpoint,
    path: StrPath,
    *,
    force: bool = False,
    config_from: StrPath | None = None,
    max_shard_bytes: int | None = None,
    progress: Progress = no_progress,
) -> Stored:
    """Write a compressed checkpoint dense again, one tensor in memory at a time.

    Args and errors are those of `compress`; a torch file may be written, too.

    Raises:
        CheckpointError: no tensor of it is stored sparse.
    """
    began = time.perf_counter()
    given = open_checkpoint(source) if not isinstance(source, Checkpoint) else source
    if not isinstance(given, CompressedCheckpoint):
        raise CheckpointError(
            f"{given.path} holds no tensor that is stored sparse; expected what stockpot compress "
            "or compressed-tensors (sparse-bitmask) wrote: it is dense already"
        )
    passed = _Passed(progress, sum(spec.nbytes for spec in given.values()))
    plan = plan_output(
        OutputRequest(
            path=path,
            specs=dict(given),
            tied=given.tied,
            metadata=agreed_metadata([given]),
            like=given,
            config_from=config_from,
            max_shard_bytes=max_shard_bytes,
            inputs=(given,),
        )
    )
    with open_output(plan, force=force) as output:
        for name in given.distinct:
            _write_dense(output, given, name, passed)
        _copy_record(given, output)
    return _stored(plan, given, given.sparsity, given.n_sparse, [], began)


@dataclass
class _Passed:
    """Bytes that have passed by; it has state because it counts."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        self.progress(self.done, self.total, "bytes")


def _refuse_to_compress(given: Checkpoint, path: StrPath) -> None:
    if isinstance(given, CompressedCheckpoint):
        raise CheckpointError(f"{given.path} is stored sparse already; there is nothing to do")
    if output_format(path) not in (SAFETENSORS, MODEL_FOLDER):
        raise CheckpointError(
            f"{path}: the layout belongs to safetensors files; write a .safetensors file or a "
            "folder"
        )
    if is_compressed(given):
        raise AssertionError("opening recognises the layout")
    specs = given.values()
    parts = {part.name for spec in specs if _fits(spec) for part in part_specs(spec, 0).values()}
    taken = [name for name in given if name in parts]
    if taken:
        raise CheckpointError(
            f"{given.path} cannot be compressed: {', '.join(taken[:3])} would be taken for a part "
            f"of a sparse tensor, because names that end in {', '.join(PARTS)} mean that here"
        )


def _fits(spec: TensorSpec) -> bool:
    """Whether the layout can hold it: by name, by type, and not 0-d."""
    return spec.name.endswith(".weight") and _is_candidate(spec)


def _is_candidate(spec: TensorSpec) -> bool:
    return spec.dtype.mixable and len(spec.shape) > 0 and spec.numel > 0


def _count(given: Checkpoint, name: str, passed: _Passed) -> int | None:
    """How many values are not zero; None where that is of no interest."""
    spec = given[name]
    if not _is_candidate(spec):
        passed.add(spec.nbytes)
        return None
    read, total = given.reader(name), 0
    for start in range(0, spec.nbytes, _PIECE_BYTES):
        piece = read(start, start + _PIECE_BYTES)
        total += int(np.count_nonzero(nonzero(piece, spec.dtype)))
        passed.add(piece.size)
    return total


def _is_smaller(spec: TensorSpec, n_values: int) -> bool:
    stored = sum(part.nbytes for part in part_specs(spec, n_values).values())
    return _fits(spec) and stored + _HEADER_BYTES < spec.nbytes


def _half(spec: TensorSpec, n_values: int | None) -> bool:
    return n_values is not None and not _fits(spec) and 0 < 2 * n_values <= spec.numel


def _nothing_sparse(
    given: Checkpoint, counts: Mapping[str, int | None], left_dense: Sequence[str]
) -> str:
    looked = {name: n for name, n in counts.items() if n is not None}
    total = sum(given[name].numel for name in looked)
    share = 1 - sum(looked.values()) / max(1, total)
    names = (
        f" (those in {', '.join(left_dense[:3])} do not count, because the layout holds names that "
        "end in .weight only)"
        if left_dense
        else ""
    )
    return (
        f"no tensor of {given.path} gets smaller: {100 * share:.1f} % of its floating-point values "
        f"are zero{names}; expected a pruned checkpoint, in which a value costs a bit even where "
        "it is zero"
    )


def _stored_specs(given: Checkpoint, sparse: Mapping[str, int]) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for name, spec in given.items():
        if name in sparse:
            specs |= {part.name: part for part in part_specs(spec, sparse[name]).values()}
        else:
            specs[name] = spec
    return specs


def _layout(sparsity: float, given: Checkpoint, sparse: Mapping[str, int]) -> dict[str, JSON]:
    """What `config.json` says of it, so that no reader takes the weights for missing ones."""
    dense = (name for name in given if _fits(given[name]) and name not in sparse)
    return {
        "quant_method": "compressed-tensors",
        "version": "0.13.0",
        "sparsity_config": {
            "format": "sparse-bitmask",
            "global_sparsity": sparsity,
            "ignore": _modules(dense),
            "sparsity_structure": "unstructured",
            "targets": _modules(sparse),
        },
    }


def _modules(names: Iterable[str]) -> list[JSON]:
    return [*sorted(name.removesuffix(".weight") for name in names)]


def _write_sparse(
    output: Output, given: Checkpoint, name: str, n_values: int, passed: _Passed
) -> None:
    spec = given[name]
    parts, rows = part_specs(spec, n_values), Rows.of(spec.shape)
    values = given.raw(name).view(spec.dtype.storage).reshape(rows.n, rows.length)
    output.write(parts["shape"].name, 0, np.array(spec.shape, "<i8").data)
    used, offset_bytes = 0, 0
    for start, stop in row_blocks(rows):
        block = values[start:stop]
        kept = nonzero(block.reshape(-1).view(np.uint8), spec.dtype).reshape(block.shape)
        counts = np.count_nonzero(kept, axis=1).astype("<i8")
        # Those of the rows that begin an index of the first dimension.
        offsets = (used + np.cumsum(counts) - counts)[-start % rows.per_offset :: rows.per_offset]
        chosen = block[kept]
        bits = np.packbits(kept, axis=1, bitorder="little")
        output.write(parts["compressed"].name, used * chosen.itemsize, chosen.view(np.uint8).data)
        output.write(parts["bitmask"].name, start * rows.n_bytes, bits.reshape(-1).data)
        output.write(
            parts["row_offsets"].name, offset_bytes, np.ascontiguousarray(offsets, "<i8").data
        )
        used += int(counts.sum())
        offset_bytes += offsets.size * 8
        passed.add(block.nbytes)


def _write_dense(output: Output, given: Checkpoint, name: str, passed: _Passed) -> None:
    for start, piece in _pieces(given, name):
        output.write(name, start, piece)
        passed.add(len(piece))


def _pieces(given: Checkpoint, name: str) -> Iterator[tuple[int, memoryview]]:
    read = given.reader(name)
    for start in range(0, given[name].nbytes, _PIECE_BYTES):
        yield start, np.ascontiguousarray(read(start, start + _PIECE_BYTES)).data


def _copy_record(given: Checkpoint, output: Output) -> None:
    """The record of a soup describes its values, which are the same in both forms."""
    beside = record_path(given.path)
    if given.files and beside.is_file() and stays_inside(beside, beside.parent):
        try:
            output.record(read_regular(beside))
        except ValueError as error:
            raise CheckpointError(f"the record {beside} cannot be copied: {error}") from error


def _stored(
    plan: OutputPlan,
    given: Checkpoint,
    sparsity: float,
    n_sparse: int,
    left_dense: Sequence[str],
    began: float,
) -> Stored:
    return Stored(
        path=plan.path,
        bytes=plan.n_bytes,
        dense_bytes=sum(spec.nbytes for spec in given.values()),
        sparsity=sparsity,
        n_sparse=n_sparse,
        n_tensors=len(given),
        left_dense=tuple(left_dense),
        seconds=time.perf_counter() - began,
    )
