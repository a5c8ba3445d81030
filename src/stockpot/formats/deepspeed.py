"""Folders of DeepSpeed's `save_checkpoint` (ZeRO 1, 2, 3): fp32 weights put together lazily.

In training, each rank keeps its part of the fp32 weights flat, beside its optimiser states. The
files of the weights themselves are of 16 bits or, with ZeRO-3, empty. Which part of which flat
buffer is which tensor follows from the shapes, in order:

- ZeRO 1 and 2: each group of parameters is one flat buffer, its tensors one after the other, cut
  into equal parts, one for each rank; the end is filled up.
- ZeRO 3: each tensor is cut into equal parts, its end filled up; a rank has its parts of all
  tensors one after the other, in one buffer or several.

Layout: deepspeed/utils/zero_to_fp32.py of DeepSpeed, which puts a whole checkpoint together in
memory; here the pieces stay where they are and are read when they are asked for.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot.errors import CheckpointFormatError, UnsafeCheckpointError
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format
from stockpot.formats.mapped import Run, RunsCheckpoint
from stockpot.formats.pickle_values import Placeholder, StoredTensor
from stockpot.formats.sections import split_section
from stockpot.formats.torchfile import TorchValue, shortened
from stockpot.io.storage import MappedFile, stays_inside
from stockpot.tensors.spec import DType, TensorSpec

_REMEDY = (
    "put them together with its own script, python zero_to_fp32.py . pytorch_model.bin, and give "
    "that file"
)
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"mp_rank_\d+_model_states\.pt")
_FIRST = "mp_rank_00_model_states.pt"
_MAX_RANKS = 100_000


class _NotReadError(Exception):
    """Why the partitions are not put together; the caller knows the folder."""


@dataclass(frozen=True, slots=True)
class _Flat:
    """Elements in a row: whole buffers of one rank, one after the other."""

    runs: tuple[Run, ...]
    dtype: DType

    @property
    def numel(self) -> int:
        return sum(run.n_bytes for run in self.runs) * 8 // self.dtype.bits

    def cut(self, start: int, stop: int) -> Iterator[Run]:
        """Elements `start` to `stop`."""
        item = self.dtype.bits // 8
        begin, end = start * item, stop * item
        for run in self.runs:
            if begin < run.n_bytes and end > 0:
                first = max(begin, 0)
                yield Run(run.file, run.at + first, min(end, run.n_bytes) - first)
            begin, end = begin - run.n_bytes, end - run.n_bytes


class ZeroCheckpoint(RunsCheckpoint):
    """The fp32 weights of a folder of DeepSpeed, and the buffers beside them."""

    format = "deepspeed"

    def __init__(self, folder: Path) -> None:
        try:
            place = _step_of(folder)
            tensors, others, files = _assembled(place)
        except (_NotReadError, CheckpointFormatError, UnsafeCheckpointError) as reason:
            raise CheckpointFormatError(
                f"{folder} is a checkpoint folder of DeepSpeed (ZeRO), its weights in partitions "
                f"that cannot be put together here ({reason}): {_REMEDY}"
            ) from None
        self._runs = {name: runs for name, (_, runs) in tensors.items()}
        notes = [f"the weights were put together from files of {place.name}: {len(files)}"]
        if others:
            notes.append(f"left out, not tensors: {shortened(others)}")
        super().__init__(
            os.fspath(folder),
            {name: spec for name, (spec, _) in tensors.items()},
            notes=tuple(notes),
            files=tuple(file.id for file in files),
            tied=_tied(self._runs),
        )


def _step_of(folder: Path) -> Path:
    """The folder with the partitions: `folder`, what its `latest` names, or the only one in it."""
    if any(_OPTIM.fullmatch(p.name) or _MODEL.fullmatch(p.name) for p in folder.iterdir()):
        return folder
    latest = folder / "latest"
    if latest.is_file() and latest.stat().st_size < 4096:
        named = folder / latest.read_text(errors="replace").strip()
        if named.is_dir() and stays_inside(named, folder):
            return named
    found = [p for p in folder.glob("global_step*") if any(p.glob("*_states.pt"))]
    if len(found) != 1:
        raise _NotReadError(f"it holds {len(found)} steps and no file `latest` that names one")
    return found[0]


_Tensors = dict[str, tuple[TensorSpec, tuple[Run, ...]]]


def _assembled(place: Path) -> tuple[_Tensors, list[str], list[MappedFile]]:
    """The tensors, the names of what is none and is left out, and the files."""
    ranks = _ranks(place)
    if not ranks:
        return _whole(place)
    states = [TorchValue(MappedFile(place / name)) for name in ranks]
    optimisers = [_entry(state.root, "optimizer_state_dict") for state in states]
    # Training in bfloat16 with sums of gradients in float32 names none, and cuts as the first.
    stages = [_stage(one.get("zero_stage", 1)) for one in optimisers]
    if len(set(stages)) != 1:
        raise _NotReadError(f"its files are of the stages {sorted(set(stages))} of ZeRO")
    third = stages[0] == 3
    for one in optimisers:
        counts = one.get("partition_count")
        counts = counts if isinstance(counts, list | tuple) else [counts]
        if any(type(n) is int and n != len(ranks) for n in counts):
            raise _NotReadError(f"{counts[0]} partitions were written, {len(ranks)} are there")
    names = [_model_file(place, rank, third) for rank in (range(len(ranks)) if third else [0])]
    models = [TorchValue(MappedFile(place / name)) for name in names]
    module = _entry(models[0].root, "module")
    field = "fp32_flat_groups" if third else "single_partition_of_fp32_groups"
    parts = [
        [_flat(state, value) for value in _listed(one.get(field))]
        for state, one in zip(states, optimisers, strict=True)
    ]
    shapes = [_shapes(group) for group in _listed(models[0].root.get("param_shapes"))]
    tensors = _third(parts, shapes) if third else _first(parts, shapes)
    tensors |= _frozen(models, third)
    for name in _texts(models[0].root.get("buffer_names")):
        value = module.get(name)
        if isinstance(value, StoredTensor):
            tensors[name] = models[0].tensor(name, value)
    _share(tensors, module, models[0].root.get("shared_params"))
    untrained, others = _untrained(models[0], {n: module[n] for n in module if n not in tensors})
    tensors |= untrained
    if not tensors:
        raise _NotReadError("it names no parameters")
    return tensors, others, [one.file for one in (*states, *models)]


def _whole(place: Path) -> tuple[_Tensors, list[str], list[MappedFile]]:
    """The weights of training without ZeRO, which the first rank writes whole."""
    names = sorted(path.name for path in place.iterdir() if _MODEL.fullmatch(path.name))
    if len(names) > 1:
        raise _NotReadError("it is of several tensor-parallel ranks")
    model = TorchValue(MappedFile(place / names[0]))
    tensors, others = _untrained(model, _entry(model.root, "module"))
    if not tensors:
        raise _NotReadError("it names no parameters")
    return tensors, others, [model.file]


def _ranks(place: Path) -> list[str]:
    """Names of the files of all ranks, in order; none of training without ZeRO."""
    found: dict[int, str] = {}
    for path in place.iterdir():
        match = _OPTIM.fullmatch(path.name)
        if match is not None:
            if int(match[2]) or int(match[1]) in found:
                raise _NotReadError("it is of several tensor-parallel ranks")
            found[int(match[1])] = path.name
    if sorted(found) != list(range(len(found))) or len(found) > _MAX_RANKS:
        missing = next((i for i in range(len(found)) if i not in found), 0)
        raise _NotReadError(f"the partition of rank {missing} is missing")
    return [found[rank] for rank in range(len(found))]


def _stage(value: object) -> int:
    """The stage of ZeRO: a number, of an enumeration whose class is not loaded."""
    if isinstance(value, Placeholder) and value.origin.endswith(".ZeroStageEnum"):
        value = next((p[0] for p in value.parts if isinstance(p, tuple) and len(p) == 1), None)
    if type(value) is not int or value not in (1, 2, 3):
        raise _NotReadError(f"its stage of ZeRO is {str(value)[:80]}, expected 1, 2 or 3")
    return value


def _model_file(place: Path, rank: int, third: bool) -> str:
    for kind in ("", "bf16_", "fp16_"):
        name = f"{kind}zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        if third and (place / name).is_file():
            return name
    if third or not (place / _FIRST).is_file():
        raise _NotReadError(f"the file with the shapes of rank {rank} (model_states) is missing")
    return _FIRST


def _entry(root: object, key: str) -> Mapping[str, Any]:
    found = root.get(key) if isinstance(root, dict) else None
    if not isinstance(found, dict):
        raise _NotReadError(f"a file lacks {key!r}")
    return found


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _shapes(group: object) -> dict[str, tuple[int, ...]]:
    """The shapes of a group of parameters, in the order in which they lie in the buffer."""
    if not isinstance(group, dict):
        raise _NotReadError("a file lacks the shapes of the parameters")
    for name, shape in group.items():
        sizes = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
        if not isinstance(name, str) or not sizes:
            raise _NotReadError("a shape of a parameter is none")
    return group


def _flat(state: TorchValue, value: object) -> _Flat:
    if not isinstance(value, StoredTensor):
        raise _NotReadError("a partition is no tensor")
    spec, runs = state.tensor("partition", value)
    if len(spec.shape) != 1 or not spec.dtype.mixable:
        raise _NotReadError(f"a partition is {spec.dtype.value} {spec.shape}")
    return _Flat(runs, spec.dtype)


def _joined(flats: Sequence[_Flat]) -> _Flat:
    dtypes = {one.dtype for one in flats}
    if len(dtypes) != 1:
        raise _NotReadError("partitions have different types")
    return _Flat(tuple(run for one in flats for run in one.runs), next(iter(dtypes)))


def _first(parts: list[list[_Flat]], shapes: list[dict[str, tuple[int, ...]]]) -> _Tensors:
    """ZeRO 1 and 2: the parts of a group, joined, are its tensors one after the other."""
    if any(len(one) != len(shapes) for one in parts):
        raise _NotReadError(f"{len(parts[0])} partitions for {len(shapes)} groups of parameters")
    tensors: _Tensors = {}
    for number, group in enumerate(shapes):
        flat, at = _joined([one[number] for one in parts]), 0
        for name, shape in group.items():
            n = math.prod(shape)
            if at + n > flat.numel:
                raise _NotReadError(f"{name[:200]!a} reaches beyond its partitions")
            tensors[name] = TensorSpec(name, flat.dtype, shape), tuple(flat.cut(at, at + n))
            at += n
        # The end of a group is filled up to two elements for each rank.
        if flat.numel // -(2 * len(parts)) != at // -(2 * len(parts)):
            raise _NotReadError(f"{flat.numel - at} elements of a group belong to no parameter")
    return tensors


def _third(parts: list[list[_Flat]], shapes: list[dict[str, tuple[int, ...]]]) -> _Tensors:
    """ZeRO 3: each rank has its part of every tensor, one after the other."""
    flats = [_joined(one) for one in parts]
    tensors: _Tensors = {}
    at = 0
    for name, shape in ((n, s) for group in shapes for n, s in group.items()):
        n = math.prod(shape)
        each = -(-n // len(flats))
        if any(at + each > flat.numel for flat in flats):
            raise _NotReadError(f"{name[:200]!a} reaches beyond its partitions")
        runs = [
            run
            for rank, flat in enumerate(flats)
            for run in flat.cut(at, at + max(0, min(each, n - rank * each)))
        ]
        tensors[name] = TensorSpec(name, flats[0].dtype, shape), tuple(runs)
        at += each
    if any(flat.numel != at for flat in flats):
        raise _NotReadError(f"{flats[0].numel - at} elements of a rank belong to no parameter")
    return tensors


def _share(tensors: _Tensors, module: Mapping[str, Any], listed: object) -> None:
    """Add the names that are another tensor: listed, or of one storage in the file."""
    where = {
        (value.storage.key, value.offset): name
        for name, value in module.items()
        if name in tensors and isinstance(value, StoredTensor) and 0 not in value.shape
    }
    aliases = dict(listed) if isinstance(listed, dict) else {}
    for name, value in module.items():
        if isinstance(value, StoredTensor) and name not in tensors:
            other = where.get((value.storage.key, value.offset))
            if other is not None:
                aliases.setdefault(name, other)
    for name, other in aliases.items():
        if not isinstance(name, str) or not isinstance(other, str) or other not in tensors:
            raise _NotReadError(f"{str(name)[:200]!a} is in no partition")
        spec, runs = tensors[other]
        tensors[name] = TensorSpec(name, spec.dtype, spec.shape), runs


def _untrained(model: TorchValue, values: Mapping[str, Any]) -> tuple[_Tensors, list[str]]:
    """Tensors without a partition, as no optimiser has them; and the names of what is none.

    Of ZeRO 3 such tensors are not there either.
    """
    tensors: _Tensors = {}
    others: list[str] = []
    for name, value in values.items():
        found, left = split_section({name: value}, model.file.path)
        if any(tensor.shape == (0,) for tensor in found.values()):
            raise _NotReadError(f"{name[:200]!a} is in no partition")
        tensors |= {name: model.tensor(name, tensor) for name, tensor in found.items()}
        if left:
            try:
                # Of all that is no tensor, only what stands for an object is searched for some.
                split_section({name: Placeholder("", [value])}, model.file.path)
            except UnsafeCheckpointError:
                raise _NotReadError(f"{left[0]!a} is no tensor, and holds some inside") from None
        others += left
    return tensors, others


def _frozen(models: list[TorchValue], third: bool) -> _Tensors:
    """Parameters that are not trained: whole in the first file, or in parts in those of all."""
    tensors: _Tensors = {}
    shapes = models[0].root.get("frozen_param_shapes")
    for name, shape in _shapes(shapes).items() if isinstance(shapes, dict) else ():
        pieces = []
        for model in models:
            value = _entry(model.root, "frozen_param_fragments").get(name)
            if not isinstance(value, StoredTensor):
                raise _NotReadError(f"{name[:200]!a}, which is frozen, has no values")
            spec, runs = model.tensor(name, value)
            pieces.append(_Flat(runs, spec.dtype))
        flat, n = _joined(pieces), math.prod(shape)
        if flat.numel < n or (not third and flat.numel != n):
            raise _NotReadError(f"{name[:200]!a}, which is frozen, lacks values")
        tensors[name] = TensorSpec(name, flat.dtype, shape), tuple(flat.cut(0, n))
    return tensors


def _tied(runs: Mapping[str, Sequence[Run]]) -> tuple[tuple[str, ...], ...]:
    groups: dict[object, list[str]] = {}
    for name, found in runs.items():
        if found:
            groups.setdefault(tuple((id(r.file), r.at, r.n_bytes) for r in found), []).append(name)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))


class DeepSpeed(Format):
    """What DeepSpeed's `save_checkpoint` writes."""

    name = "deepspeed"
    summary = "a checkpoint folder of DeepSpeed (ZeRO 1 to 3): its fp32 partitions, put together"
    is_folder = True
    remedy = f"of several tensor-parallel ranks: {_REMEDY}"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By files of its ranks in it, or in the folder that its `latest` names."""
        found = ("*_optim_states.pt", "global_step*/*_states.pt", "*zero_pp_rank_*")
        whole = {p.name for p in path.glob("mp_rank_*_model_states.pt")}
        # Of several ranks without partitions nothing is known but that they are parts.
        return whole == {_FIRST} or any(next(path.glob(p), None) is not None for p in found)

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The weights in fp32, and the buffers; `key` means nothing here."""
        return ZeroCheckpoint(path)
