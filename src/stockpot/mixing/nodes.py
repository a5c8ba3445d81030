"""One output made by several machines that share a disk: each makes files, the last puts them up.

The output is planned from the headers, the same on every machine, and its plan has a hash. Every
file with weights is a part: one machine makes it, whole or not at all, and puts the digests of what
passed by beside it, in a folder that the hash names. Whoever finds all parts there puts the output
in place. Nothing else is agreed on, so a machine that died is simply started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from stockpot._records import read_json
from stockpot._types import Progress, no_progress
from stockpot.errors import CheckpointError, RecipeError
from stockpot.formats.base import Checkpoint
from stockpot.formats.output import CARD, RECORD, OutputPlan, PlannedFile, write_side_files
from stockpot.io import atomic
from stockpot.io.files import write_at
from stockpot.io.locks import holding_folder
from stockpot.mixing.engine import MixPlan, Recording, Saved, compute
from stockpot.mixing.fingerprinting import FingerprintBuilder

_DIGESTS = ".digests.json"
_VERSION = 1


@dataclass(frozen=True)
class Node:
    """One of the machines.

    Attributes:
        rank: which one it is, counted from 0.
        nodes: how many there are.
    """

    rank: int
    nodes: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.nodes:
            raise RecipeError(
                f"node {self.rank} of {self.nodes}: ranks are 0 to {max(self.nodes - 1, 0)} "
                "(--node-rank, --nodes)"
            )


@dataclass(frozen=True)
class _Parts:
    """The files with weights of a plan, and the folder where nodes put them."""

    plan: MixPlan
    files: tuple[PlannedFile, ...]
    place: Path
    ingredients: Sequence[Checkpoint]

    def are_done(self) -> bool:
        """Whether every node has made what is its own."""
        return all(_is_done(self.place, file) for file in self.files)


@dataclass(frozen=True)
class Ending:
    """What the last node does with the output.

    Attributes:
        recording: what is kept beside it.
        force: replace an older one.
    """

    recording: Recording
    force: bool = False


def save_part(
    plan: MixPlan,
    ingredients: Sequence[Checkpoint],
    node: Node,
    *,
    identity: object,
    ending: Ending,
    progress: Progress = no_progress,
) -> Saved:
    """Make the parts of `node`, and put the output in place if all parts are there then.

    Args:
        plan: of the whole output, a folder; its tensors one for each name, rules prepared.
        ingredients: whose fingerprints are made on the way.
        node: which machine this is.
        identity: what else decides on values, as JSON: coefficients, rule, policies.
        ending: what the last node does.
        progress: called with the bytes of this machine's parts.

    Returns:
        What was done; its `fingerprint` is empty and `notes` say how many parts are missing, where
        other machines are still at work.

    Raises:
        OutputExistsError: there is an output that is not to be replaced.
        RecipeError: the output is one file, which cannot be divided.
    """
    began = time.perf_counter()
    output = plan.output
    files = tuple(file for file in output.files if file.offsets)
    if not output.folder or any(file.checksums or file.summed for file in files):
        raise RecipeError(
            f"{output.path}: several nodes make the safetensors files of a folder; give a name "
            "without suffix, and a --max-shard-size that makes as many files as there are nodes"
        )
    mine = [file for file, rank in zip(files, _ranks(files, node.nodes), strict=True)
            if rank == node.rank]  # fmt: skip
    place = _place(plan, ingredients, identity)
    if mine:
        atomic.refuse_existing(output.path, force=ending.force, folder=True)
        if place.is_symlink():
            raise CheckpointError(f"{place} is a link, and not made by a node: remove it")
        place.mkdir(parents=True, exist_ok=True)
    n_read = 0
    for file in mine:
        if not _is_done(place, file):
            n_read += _make(plan, file, place, ingredients, progress)
    saved = Saved(
        path=output.path,
        bytes_read=n_read,
        bytes_written=sum(file.size for file in mine),
        seconds=time.perf_counter() - began,
        fingerprints=(),
        fingerprint="",
    )
    return _commit(_Parts(plan, files, place, ingredients), ending, saved)


def _ranks(files: Sequence[PlannedFile], nodes: int) -> Iterator[int]:
    """Who makes each file: the one with the least to do so far, largest files first."""
    loads = [0] * nodes
    rank_of: dict[str, int] = {}
    for file in sorted(files, key=lambda file: (-file.size, file.name)):
        rank = min(range(nodes), key=lambda rank: (loads[rank], rank))
        loads[rank] += file.size
        rank_of[file.name] = rank
    return (rank_of[file.name] for file in files)


def _place(plan: MixPlan, ingredients: Sequence[Checkpoint], identity: object) -> Path:
    """Where the parts of this plan lie: beside the output, named by the hash of the plan."""
    fields = [
        _VERSION,
        identity,
        [[file.name, file.size, sorted(file.offsets.items())] for file in plan.output.files],
        [[name, s.dtype.value, list(s.shape)] for name, s in sorted(plan.output.specs.items())],
        # Not inodes or times of change, which differ between machines of one shared disk.
        [[[f.path, f.size, f.etag or f.mtime_ns] for f in one.files] for one in ingredients],
    ]
    key = xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())
    target = Path(os.path.realpath(plan.output.path))
    return target.with_name(f".{target.name[:150]}.parts-{key}")


def _is_done(place: Path, file: PlannedFile) -> bool:
    """Whether both files are there: files, for a link would put another's content into the output.

    Raises:
        CheckpointError: there is something else.
    """
    sizes = []
    for path in (_digests(place, file), place / file.name):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is no regular file, and not made by a node: remove it")
        sizes.append(found.st_size)
    return sizes[1] == file.size


def _digests(place: Path, file: PlannedFile) -> Path:
    return place / f"{file.name}{_DIGESTS}"


def _make(
    plan: MixPlan,
    file: PlannedFile,
    place: Path,
    ingredients: Sequence[Checkpoint],
    progress: Progress,
) -> int:
    """Make one part and then the digests that say that it is whole; the bytes read."""
    tensors = tuple(tensor for tensor in plan.tensors if tensor.spec.name in file.offsets)
    request = replace(
        plan.output.request,
        path=place / file.name,
        specs={name: plan.output.specs[name] for name in file.offsets},
        tied=(),
    )
    alone = OutputPlan(request=request, format="safetensors", files=(file,))
    n_read = sum(tensor.n_bytes_read for tensor in tensors)
    part = replace(plan, tensors=tensors, output=alone, bytes_to_read=n_read)
    fingerprints = FingerprintBuilder(ingredients, plan.result)
    with compute(part, fingerprints, force=True, progress=progress):
        pass
    atomic.write_json(_digests(place, file), fingerprints.digests())
    return n_read


def _commit(parts: _Parts, ending: Ending, saved: Saved) -> Saved:
    missing = [file.name for file in parts.files if not _is_done(parts.place, file)]
    if not missing:
        with contextlib.suppress(FileNotFoundError), holding_folder(parts.place):
            if parts.are_done():  # nobody else has put them in place
                return _put(parts, ending, saved)
    if not parts.place.exists() and Path(parts.plan.output.path).exists():
        return replace(saved, notes=("the output was put in place by another node",))
    n = len(parts.files)
    waits = f"{n - len(missing)} of {n} files are made; the node that makes the last one puts "
    return replace(saved, notes=(f"{waits}the output in place",))


def _put(parts: _Parts, ending: Ending, saved: Saved) -> Saved:
    place, recording, output = parts.place, ending.recording, parts.plan.output
    fingerprints = FingerprintBuilder(parts.ingredients, parts.plan.result)
    for file in parts.files:
        fingerprints.merge(read_json(_digests(place, file), error=CheckpointError))
    whole = replace(
        saved, fingerprints=fingerprints.fingerprints(), fingerprint=fingerprints.result()
    )
    with atomic.staged_folder(output.path, force=ending.force, replaces=output.replaces) as staged:
        write_side_files(output, staged.path)
        for file in output.files:
            target = staged.path / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.offsets:
                _link(place / file.name, target)
                continue
            with target.open("wb") as opened:
                for offset, data in file.fixed:
                    write_at(opened.fileno(), memoryview(data), offset)
        record = {} if recording.record is None else recording.record(whole)
        if record:
            (staged.path / RECORD).write_bytes(atomic.dump_json(record))
        older = Path(output.path)
        may = (older / RECORD).exists() or not (older / CARD).exists()
        if recording.card is not None and may:
            page = recording.card(record, staged.path)
            (staged.path / CARD).write_text(page, encoding="utf-8")
    fingerprints.cache()
    shutil.rmtree(place, ignore_errors=True)
    return whole


def _link(source: Path, target: Path) -> None:
    """A second name for a part, which stays until the output is in place; or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
