"""Checkpoints in a store: the small files of a folder come here, weights are read by ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from stockpot._types import format_bytes
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.folder import ModelFolder
from stockpot.formats.format import Format
from stockpot.formats.safetensors import Safetensors, SafetensorsFile
from stockpot.io.objects import RemoteFile, Store, open_store, shown
from stockpot.io.storage import ScratchFolder
from stockpot.io.uploads import STAGED

_MAX_SIDE_BYTES = 256 << 20
"""Most that all files of a folder beside its weights may have."""


def open_remote(name: str, formats: Callable[[], Iterable[Format]]) -> Checkpoint:
    """The checkpoint at `name` in a store or on a web server: a safetensors file, or a folder.

    Headers are read now, values by ranges when they are asked for; no copy of them is kept. Every
    answer has to be of the version that was found when it was opened.

    Args:
        name: such as `s3://bucket/model` or `https://host/model.safetensors`.
        formats: gives every format, by which the files of a folder are known.

    Raises:
        CheckpointError: nothing is there, or it cannot be reached.
        CheckpointFormatError: it is damaged, or of a format that is not read from there.
    """
    store, key = open_store(name)
    found = store.find(key) if key and not name.endswith("/") else None
    if found is not None:
        if not key.lower().endswith(Safetensors.suffixes):
            raise CheckpointFormatError(_only_safetensors(shown(name)))
        opened: Checkpoint = SafetensorsFile(shown(name), RemoteFile(store, key, *found))
    elif store.lists:
        opened = _open_folder(store, key, shown(name), formats)
    else:
        raise CheckpointError(
            f"there is nothing at {shown(name)}; a web server does not say what a folder holds: "
            "name a .safetensors file"
        )
    opened.path = shown(name)
    return opened


def _only_safetensors(name: str) -> str:
    return (
        f"{name}: only safetensors files are read from a store; copy it to a disk, or save it as "
        "safetensors"
    )


def _open_folder(
    store: Store, key: str, name: str, formats: Callable[[], Iterable[Format]]
) -> Checkpoint:
    """The folder, seen through one of this machine: side files as they are, weights as stubs."""
    here = ScratchFolder()
    weights = tuple(suffix for one in formats() for suffix in one.suffixes)
    files: dict[Path, RemoteFile] = {}
    small: dict[str, Path] = {}
    prefix = f"{key}/" if key else ""
    n_bytes, empty = 0, True
    for full, size, etag in store.entries(key):
        inside, empty = PurePosixPath(full.removeprefix(prefix)), False
        if inside.name == STAGED:
            raise CheckpointError(
                f"{name} is not complete: the run that wrote it was stopped; write it again"
            )
        # Checkpoints of a run lie deeper than the parts of a model.
        if len(inside.parts) > 2 or ".." in inside.parts or not full.startswith(prefix):
            continue
        place = Path(here.name, *inside.parts)
        place.parent.mkdir(exist_ok=True)
        if inside.name.lower().endswith(weights):
            place.touch()
            if inside.name.lower().endswith(Safetensors.suffixes):
                files[place] = RemoteFile(store, full, size, etag)
        elif len(inside.parts) == 1 or size < _MAX_SIDE_BYTES // 16:
            n_bytes += size
            small[full] = place
    if empty:
        raise CheckpointError(f"there is nothing at {name}")
    if n_bytes > _MAX_SIDE_BYTES:
        raise CheckpointError(
            f"{name} holds {format_bytes(n_bytes)} beside its weights, at most "
            f"{format_bytes(_MAX_SIDE_BYTES)} are fetched: name a folder with one model"
        )
    _fetch(store, small)
    return through_stubs(Path(here.name), here, files, formats)


def through_stubs(
    path: Path,
    here: ScratchFolder,
    files: Mapping[Path, RemoteFile],
    formats: Callable[[], Iterable[Format]],
) -> Checkpoint:
    """The checkpoint at `path` in `here`, whose weights are empty files that stand for `files`."""
    if path in files:
        opened: Checkpoint = SafetensorsFile(path, files[path])
    else:
        opened = ModelFolder(lambda: (_InStore(files), *formats())).open(path)
    opened.mirror = here
    return opened


def _fetch(store: Store, small: dict[str, Path]) -> None:
    with ThreadPoolExecutor(8) as threads:
        for place, data in zip(small.values(), threads.map(store.read, small), strict=True):
            place.write_bytes(data)


class _InStore(Format):
    """Weights whose bytes are in a store; the files that stand for them here are empty.

    Args:
        files: by the place of their stub.
    """

    name = "safetensors"
    summary = "a safetensors file in a store"

    def __init__(self, files: Mapping[Path, RemoteFile]) -> None:
        self._files = files

    def recognises(self, path: Path, head: bytes) -> bool:
        """Every stub: other files with weights are refused with the remedy."""
        return path in self._files or not head

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The file's tensors; `key` means nothing here."""
        if path not in self._files:
            raise CheckpointFormatError(_only_safetensors(path.name))
        return SafetensorsFile(path, self._files[path])
