"""Model folders as transformers writes them: one weights file, or shards with an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot._records import loads, read_regular
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import sidefiles
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format, first_of
from stockpot.formats.output import OutputPlan, OutputRequest, PlannedFile
from stockpot.formats.safetensors import plan_file
from stockpot.io.atomic import dump_json
from stockpot.io.objects import RemoteFile
from stockpot.io.paths import natural_key
from stockpot.tensors.spec import TensorSpec

DEFAULT_MAX_SHARD_BYTES = 5_000_000_000
"""Tensor bytes per file of a folder, unless the folder it is modelled on has smaller shards."""

MAX_INDEX_BYTES = 100_000_000
"""Longest index that is read; a real one takes about 100 bytes for each tensor."""

_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
_INDEX = ".index.json"
_LINKS = "links that lead out of their folder are not followed, their files left out: {}"
_Open: TypeAlias = Callable[[Path, str | None], Checkpoint]


class ModelFolder(Format):
    """A folder as transformers writes it: weights of one format, and files that are no weights.

    Args:
        formats: gives all formats when they are needed, so that this one can be among them.
    """

    name = "folder"
    summary = "a model folder (transformers, adapters), sharded or not"
    is_folder = True
    writes = True
    side_files = "configuration, tokenizer and other files that are no weights"
    remedy = "name one file where a folder holds several and no index"

    def __init__(self, formats: Callable[[], Iterable[Format]]) -> None:
        self._formats = formats

    def recognises(self, path: Path, head: bytes) -> bool:
        """By files with weights, shards without their index included: `open` says what is wrong."""
        try:
            return self.weights_file(path) is not None or bool(sidefiles.parts_of(path))
        except CheckpointFormatError:
            return True

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The checkpoint in a model folder, of all its parts if it has several.

        Raises:
            CheckpointFormatError: no weights or several, a damaged index, a shard that is missing
                or disagrees with the index.
        """
        weights = {part: self.weights_file(path / part) for part in ("", *sidefiles.parts_of(path))}
        found = {part: file for part, file in weights.items() if file is not None}
        if not found:
            raise CheckpointFormatError(self._no_single(path))
        parts = {part: self._open_weights(file, key) for part, file in found.items()}
        checkpoint = parts[""] if list(parts) == [""] else ModelOfParts(path, parts)
        checkpoint.path = os.fspath(path)
        return checkpoint

    def plan(self, request: OutputRequest) -> OutputPlan:
        """Safetensors files of the size that is asked for, an index, and side files."""
        parts = [] if request.like is None else sidefiles.parts_of(Path(request.like.folder))
        kept = None if parts else self._kept(request)
        sides: list[sidefiles.SideFiles] = []
        files: list[PlannedFile] = []
        for part in ("", *parts):
            specs = {
                name: spec for name, spec in request.specs.items() if part == _part(name, parts)
            }
            dtypes = frozenset(spec.dtype for spec in specs.values() if spec.dtype.mixable)
            side = sidefiles.collect(request, self._suffixes(), part=part, dtypes=dtypes)
            sides.append(side)
            if kept is not None:
                files += kept.files
            elif specs or not parts:
                files += _plan_part(part, specs, request, side)
        links = [name for side in sides for name in side.links]
        return OutputPlan(
            request=request,
            format=kept.format if kept else f"safetensors{'-sharded' if files[1:] else ''}",
            files=tuple(files),
            folder=True,
            copies=tuple(copy for side in sides for copy in side.copies),
            rewritten=tuple(one for side in sides for one in side.rewritten),
            differing=tuple(name for side in sides for name in side.differing),
            notes=(
                *(kept.notes if kept else ()),
                *((_LINKS.format(", ".join(links[:5])),) if links else ()),
            ),
        )

    def _kept(self, request: OutputRequest) -> OutputPlan | None:
        """The plan of the weights where the library of the folder reads one format alone."""
        folder = None if request.like is None else Path(request.like.path)
        file = None if folder is None or not folder.is_dir() else self.weights_file(folder)
        if file is None:
            return None
        name = file.name.removesuffix(_INDEX)  # in one file, however many there were
        if name != file.name:
            found = next((one for one in self._formats() if name in one.in_folders), None)
        else:
            found = first_of(self._formats(), file)
        if found is None or not found.kept_in_folders:
            return None
        return found.plan(replace(request, path=Path(request.path) / name))

    def _open_weights(self, found: Path, key: str | None) -> Checkpoint:
        if found.name.endswith(_INDEX):
            return ShardedCheckpoint(found, self._open_file, key=key)
        return self._open_file(found, key)

    def weights_file(self, folder: Path) -> Path | None:
        """The file in `folder` that holds or indexes its weights; None when there is no single one.

        Raises:
            CheckpointFormatError: shards lie there without an index.
        """
        # A folder for several libraries is read as that for torch.
        formats = sorted(self._formats(), key=lambda one: one.kept_in_folders)
        for name in (name for one in formats for name in one.in_folders):
            for path in (folder / name, folder / f"{name}{_INDEX}"):
                if path.is_file():
                    return path
        found = self._candidates(folder)
        indices = [path for path in found if path.name.endswith(_INDEX)]
        for group in (indices, found):
            if len(group) == 1:
                _refuse_lone_shard(group[0])
                return group[0]
        shards = [path.name for path in found if _SHARD.search(path.name)]
        if shards:
            raise CheckpointFormatError(
                f"{folder} holds {len(shards)} shards ({shards[0]}, ...) and no *.index.json that "
                "lists which tensor is where; was the run that wrote it killed? Write it again"
            )
        return None

    def _suffixes(self) -> tuple[str, ...]:
        return tuple(suffix for one in self._formats() for suffix in one.suffixes)

    def _open_file(self, file: Path, key: str | None) -> Checkpoint:
        found = first_of(self._formats(), file)
        if found is None:
            raise CheckpointFormatError(f"{file} is of no format that is known")
        return found.open(file, key=key)

    def _candidates(self, folder: Path) -> list[Path]:
        readable = tuple(suffix for one in self._formats() if one.reads for suffix in one.suffixes)
        endings = (*readable, *(suffix + _INDEX for suffix in readable))
        return sorted(
            path
            for path in folder.iterdir()
            if path.name.lower().endswith(endings)
            and not path.name.startswith(".")
            and not _NOT_WEIGHTS.fullmatch(path.name)
            and path.is_file()
        )

    def _no_single(self, folder: Path) -> str:
        found = [candidate.name for candidate in self._candidates(folder)]
        if found:
            return (
                f"{folder} holds {len(found)} weights files and no index "
                f"({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}); name one of them"
            )
        return (
            f"{folder} holds no weights; expected model.safetensors, pytorch_model.bin, "
            "or one of them with an index"
        )


def _refuse_lone_shard(path: Path) -> None:
    match = _SHARD.search(path.name)
    if match is not None and int(match[2]) > 1 and not path.name.endswith(".json"):
        raise CheckpointFormatError(
            f"{path.parent} holds one shard of {int(match[2])} ({path.name}) and no *.index.json"
        )


class ShardedCheckpoint(Checkpoint):
    """Several files and the index that says which tensor is in which."""

    def __init__(self, index: Path, open_file: _Open, *, key: str | None = None) -> None:
        weight_map, metadata = _read_index(index)
        shards = _open_shards(index, weight_map, open_file, key)
        self.format = f"{next(iter(shards.values())).format}-sharded"
        self._where = _placed(index, weight_map, shards)
        unlisted = sum(len(shard) for shard in shards.values()) - len(self._where)
        notes: tuple[str, ...] = ()
        if unlisted:
            notes = (f"{unlisted} tensors in the shards are not in the index and are ignored",)
        names = {(id(shard), own): name for name, (shard, own) in self._where.items()}
        listed = [
            [names[id(s), n] for n in group if (id(s), n) in names]
            for s in shards.values()
            for group in s.tied
        ]
        super().__init__(
            os.fspath(index.parent),
            {name: replace(shard[own], name=name) for name, (shard, own) in self._where.items()},
            metadata=metadata,
            tied=tuple(sorted(tuple(sorted(group)) for group in listed if len(group) > 1)),
            notes=notes + _each_once(shards.values()),
            files=tuple(file for shard in shards.values() for file in shard.files),
        )

    def scattered(self, name: str) -> bool:
        """As in its shard."""
        shard, own = self._where[name]
        return shard.scattered(own)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """From its shard."""
        shard, own = self._where[name]
        return shard.part(own, start, stop)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in its shard."""
        shard, own = self._where[name]
        return shard.in_store(own)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, from its shard."""
        self[name]  # raises TensorNotFoundError with the path of the folder
        shard, own = self._where[name]
        return shard.raw(own)


def _placed(
    index: Path, weight_map: Mapping[str, str], shards: Mapping[str, Checkpoint]
) -> dict[str, tuple[Checkpoint, str]]:
    """Where each tensor is: its shard, and its name there.

    The indexes of flax and TensorFlow write names otherwise than their files do; there the names
    are those of the files, if the index has as many.
    """
    absent = [f"{name} in {file}" for name, file in weight_map.items() if name not in shards[file]]
    own = [(name, shard) for shard in shards.values() for name in shard]
    if not absent:
        return {name: (shards[file], name) for name, file in weight_map.items()}
    other = all("/" in name for name in absent)
    if not other or len({name for name, _ in own}) != len(weight_map):
        raise CheckpointFormatError(
            f"{index} names {len(absent)} tensors that their shards do not hold: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    # A file joins the parts of its names by dots unless a part of one in it holds a dot.
    slashes = any("/" in name for name, _ in own)
    return {
        name if "/" in name or not slashes else name.replace(".", "/"): (shard, name)
        for name, shard in own
    }


def _each_once(shards: Iterable[Checkpoint]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for shard in shards for note in shard.notes))


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The weight map, and the metadata as text."""
    try:
        fields: Any = loads(read_regular(index, MAX_INDEX_BYTES))
    except ValueError as error:
        raise CheckpointFormatError(f"{index} is not a valid index: {error}") from None
    weight_map = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFormatError(f'{index} has no "weight_map" that maps tensors to files')
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _stays_inside(file):
            raise CheckpointFormatError(
                f"{index} puts {name!r} in {file!r}; expected the name of a file in the same folder"
            )
    metadata = fields.get("metadata")
    text = metadata if isinstance(metadata, dict) else {}
    return weight_map, {k: v if isinstance(v, str) else json.dumps(v) for k, v in text.items()}


def _stays_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in file
    )


def _open_shards(
    index: Path, weight_map: Mapping[str, str], open_file: _Open, key: str | None
) -> dict[str, Checkpoint]:
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise CheckpointFormatError(
            f"{index.parent} lacks {len(missing)} of {len(files)} shards: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; "
            "copy them there, or write the checkpoint again"
        )
    try:
        return {file: open_file(index.parent / file, key) for file in files}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


class ModelOfParts(Checkpoint):
    """A folder with models in subfolders: their names are `part/name`, its own just `name`."""

    format = "folder"

    def __init__(self, folder: Path, parts: Mapping[str, Checkpoint]) -> None:
        self._where = {
            (f"{part}/{name}" if part else name): (checkpoint, name)
            for part, checkpoint in parts.items()
            for name in checkpoint
        }
        ties = (
            tuple(f"{part}/{name}" if part else name for name in group)
            for part, checkpoint in parts.items()
            for group in checkpoint.tied
        )
        super().__init__(
            os.fspath(folder),
            {full: replace(one[name], name=full) for full, (one, name) in self._where.items()},
            tied=tuple(sorted(ties)),
            notes=_each_once(parts.values()),
            files=tuple(file for one in parts.values() for file in one.files),
        )
        self.computed = any(one.computed for one in parts.values())

    def scattered(self, name: str) -> bool:
        """As in its part."""
        checkpoint, own = self._where[name]
        return checkpoint.scattered(own)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """From its part."""
        checkpoint, own = self._where[name]
        return checkpoint.part(own, start, stop)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in its part."""
        checkpoint, own = self._where[name]
        return checkpoint.in_store(own)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, from its part."""
        self[name]
        checkpoint, own = self._where[name]
        return checkpoint.raw(own)


def _part(name: str, parts: Iterable[str]) -> str:
    """The part that the tensor `name` is of; empty for the whole."""
    return max((part for part in parts if name.startswith(f"{part}/")), key=len, default="")


def _plan_part(
    part: str, specs: Mapping[str, TensorSpec], request: OutputRequest, side: sidefiles.SideFiles
) -> Iterable[PlannedFile]:
    """The weights files of one part, its tensors under the names that they have in it."""
    limit = request.max_shard_bytes
    if limit is None:
        limit = side.largest_shard_bytes or DEFAULT_MAX_SHARD_BYTES
    prefix = f"{part}/" if part else ""
    own = [replace(spec, name=name.removeprefix(prefix)) for name, spec in specs.items()]
    for file in _plan_shards(side.stem, own, request.metadata, limit):
        offsets = {prefix + name: offset for name, offset in file.offsets.items()}
        yield replace(file, name=prefix + file.name, offsets=offsets)


def _plan_shards(
    stem: str, specs: list[TensorSpec], metadata: Mapping[str, str], limit: int
) -> tuple[PlannedFile, ...]:
    if limit < 1:
        raise CheckpointError(f"max_shard_bytes is {limit}; it must be at least 1")
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in sorted(specs, key=lambda spec: natural_key(spec.name)):
        if shards[-1] and filled + spec.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    if len(shards) == 1:
        return (plan_file(f"{stem}.safetensors", shards[0], metadata),)
    files = [
        plan_file(f"{stem}-{i:05}-of-{len(shards):05}.safetensors", shard, metadata)
        for i, shard in enumerate(shards, 1)
    ]
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs)},
        "weight_map": {name: file.name for file in files for name in file.offsets},
    }
    data = dump_json(index)
    return (*files, PlannedFile(f"{stem}.safetensors.index.json", len(data), fixed=((0, data),)))
