"""Model folders as transformers writes them: one weights file, or shards with an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.names import normalised
from stockpot.formats.safetensors import SafetensorsFile

MAX_INDEX_BYTES = 100_000_000
"""Longest index that is read; a real one takes about 100 bytes for each tensor."""

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
"""In the order in which they are looked for, which is that of transformers."""

_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
             ".ckpt")  # fmt: skip
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


def weights_file(folder: StrPath) -> Path | None:
    """The file in `folder` that holds or indexes its weights; None when there is no single one.

    Raises:
        CheckpointFormatError: shards lie there without an index.
    """
    folder = Path(folder)
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = _candidates(folder)
    indices = [path for path in found if path.name.endswith(".index.json")]
    for group in (indices, found):
        if len(group) == 1:
            _refuse_lone_shard(group[0])
            return group[0]
    shards = [path.name for path in found if _SHARD.search(path.name)]
    if shards:
        raise CheckpointFormatError(
            f"{folder} holds {len(shards)} shards ({shards[0]}, ...) and no *.index.json that says "
            "which tensor is where; was the run that wrote it killed? Write it again"
        )
    return None


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


def _refuse_lone_shard(path: Path) -> None:
    match = _SHARD.search(path.name)
    if match is not None and int(match[2]) > 1 and not path.name.endswith(".json"):
        raise CheckpointFormatError(
            f"{path.parent} holds one shard of {int(match[2])} ({path.name}) and no *.index.json"
        )


def _candidates(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(_SUFFIXES)
        and not path.name.startswith(".")
        and not _NOT_WEIGHTS.fullmatch(path.name)
        and path.is_file()
    )


def open_folder(path: StrPath, *, key: str | None = None) -> Checkpoint:
    """The checkpoint in the model folder `path`, headers read.

    Raises:
        CheckpointFormatError: no weights or several, a damaged index, a shard that is missing or
            disagrees with the index.
    """
    folder = Path(path)
    found = weights_file(folder)
    if found is None:
        raise CheckpointFormatError(_no_single(folder))
    if found.name.endswith(".index.json"):
        return ShardedCheckpoint(folder, found, key=key)
    return _open_file(found, label=os.fspath(path), key=key)


def _no_single(folder: Path) -> str:
    found = [candidate.name for candidate in _candidates(folder)]
    if found:
        return (
            f"{folder} holds {len(found)} weights files and no index "
            f"({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}); name one of them"
        )
    return (
        f"{folder} holds no weights; expected model.safetensors, pytorch_model.bin, "
        "or one of them with an index"
    )


def _open_file(
    path: Path, *, label: str | None = None, key: str | None = None, normalise: bool = True
) -> Checkpoint:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path, label=label, normalise=normalise)
    from stockpot.formats.torchfile import open_torch

    return open_torch(path, key=key, label=label, normalise=normalise)


class ShardedCheckpoint(Checkpoint):
    """Several files and the index that says which tensor is in which."""

    def __init__(self, folder: StrPath, index: StrPath, *, key: str | None = None) -> None:
        self.format = (
            "safetensors-sharded" if ".safetensors." in Path(index).name else "torch-sharded"
        )
        weight_map, metadata = _read_index(Path(index))
        shards = _open_shards(Path(index), weight_map, key)
        absent = [
            f"{name} in {file}" for name, file in weight_map.items() if name not in shards[file]
        ]
        if absent:
            raise CheckpointFormatError(
                f"{index} names {len(absent)} tensors that their shards do not hold: "
                f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
            )
        unlisted = sum(
            1 for file, shard in shards.items() for n in shard if weight_map.get(n) != file
        )
        notes: tuple[str, ...] = ()
        if unlisted:
            notes = (f"{unlisted} tensors in the shards are not in the index and are ignored",)
        # Wrapper prefixes are judged over all shards: one alone may hold nothing but wrapped names.
        names, renamed = normalised(weight_map)
        self._where: Mapping[str, tuple[Checkpoint, str]] = {
            names[name]: (shards[file], name) for name, file in weight_map.items()
        }
        listed = [[names[n] for n in g if n in names] for s in shards.values() for g in s.tied]
        super().__init__(
            os.fspath(folder),
            {
                new: shard[old] if new == old else replace(shard[old], name=new)
                for new, (shard, old) in self._where.items()
            },
            metadata=metadata,
            tied=tuple(sorted(tuple(sorted(group)) for group in listed if len(group) > 1)),
            notes=renamed + notes + _each_once(shards.values()),
            files=tuple(file for shard in shards.values() for file in shard.files),
        )

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, from its shard."""
        self[name]  # raises TensorNotFoundError with the path of the folder
        shard, stored = self._where[name]
        return shard.raw(stored)


def _each_once(shards: Iterable[Checkpoint]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for shard in shards for note in shard.notes))


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The weight map, and the metadata as text."""
    size = index.stat().st_size
    if size > MAX_INDEX_BYTES:
        raise CheckpointFormatError(f"{index} has {size} bytes, at most {MAX_INDEX_BYTES} are read")
    try:
        fields = json.loads(index.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{index} is not valid JSON ({error})") from None
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
    index: Path, weight_map: Mapping[str, str], key: str | None
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
        return {file: _open_file(index.parent / file, key=key, normalise=False) for file in files}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
