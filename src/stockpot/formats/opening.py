"""From a path to a checkpoint, and from arguments to paths."""

from __future__ import annotations

import builtins
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import remote
from stockpot.formats.base import Checkpoint
from stockpot.formats.encodings import (
    CompressedCheckpoint,
    PruneKeysCheckpoint,
    is_compressed,
    pruned_names,
)
from stockpot.formats.folder import open_folder, weights_file
from stockpot.formats.safetensors import SafetensorsFile
from stockpot.io.paths import natural_key

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def open(path: StrPath, *, key: str | None = None) -> Checkpoint:
    """The checkpoint at `path`: a file, or a model folder. Only headers are read.

    Nothing in the file is executed, and nothing reaches the network unless `path` is a name such as
    `hf:org/name`. The file must not change while the checkpoint is in use.

    Tensors that are stored sparse (sparse-bitmask) are seen as the dense ones that they stand for,
    and `weight_orig` with `weight_mask` of `torch.nn.utils.prune` as the pruned `weight`; `notes`
    says so.

    Args:
        path: a `.safetensors` file; a `.pt`, `.pth`, `.bin` or `.ckpt` file of torch (Lightning
            included); or a folder as transformers writes it, sharded or not.
        key: the section of a torch file that holds the tensors, such as `"state_dict"` or
            `"ema.model"`; needed only where several could be meant.

    Raises:
        CheckpointError: there is nothing at `path`, or it cannot be read.
        CheckpointFormatError: it is damaged or no checkpoint; or several sections could be meant.
        UnsafeCheckpointError: a tensor can only be had by running code from the file.
    """
    name = os.fspath(path)
    if remote.is_remote(name):
        name = remote.fetch(name)
    return as_meant(_as_stored(name, key))


def _as_stored(name: str, key: str | None) -> Checkpoint:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116
        if stat.S_ISDIR(mode):
            return open_folder(name, key=key)
        # Before it is opened: opening a named pipe would wait for somebody to write to it.
        if not stat.S_ISREG(mode):
            raise CheckpointFormatError(f"{name} is not a regular file")
        with builtins.open(name, "rb") as file:  # noqa: PTH123
            magic = file.read(9)
    except OSError as error:
        raise CheckpointError(_unreadable(name, error)) from error
    # The suffix is only a hint: the content decides where it is unmistakable.
    if magic[8:9] == b"{" or name.endswith(".safetensors"):
        return SafetensorsFile(name)
    from stockpot.formats.torchfile import open_torch

    return open_torch(name, key=key)


def as_meant(stored: Checkpoint) -> Checkpoint:
    """`stored` with tensors that stand for others seen as those: bitmasks and prune keys."""
    if is_compressed(stored):
        stored = CompressedCheckpoint(stored)
    return PruneKeysCheckpoint(stored) if pruned_names(stored) else stored


def _unreadable(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        near = _nearest(Path(name))
        hint = f"; did you mean {near}?" if near else ""
        if not near and remote.looks_like_hub_name(name):
            hint = f" (a local path; a model on the Hugging Face hub is written hf:{name})"
        return f"there is nothing at {name}{hint}"
    return f"{name} cannot be read: {error.strerror}"


def _nearest(path: Path) -> str | None:
    import difflib

    try:
        names = os.listdir(path.parent)  # noqa: PTH208
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return os.fspath(path.parent / close[0]) if close else None


def expand_paths(paths: Iterable[StrPath]) -> list[str]:
    """`paths` with every folder of runs replaced by its runs, in natural order.

    A folder that is itself a checkpoint stands for itself. Any other stands for the entries named
    `run-*` in it or in its subfolder `runs`; without those, for every checkpoint directly in it.

    Raises:
        CheckpointError: a folder holds neither a checkpoint nor runs.
    """
    expanded: list[str] = []
    for path in paths:
        name = os.fspath(path)
        if not os.path.isdir(name):  # noqa: PTH112
            expanded.append(name)
            continue
        expanded.extend(_runs(name))
    return expanded


def _runs(folder: str) -> list[str]:
    for parent in (Path(folder) / "runs", Path(folder)):
        if parent.is_dir():
            runs = [p for p in parent.iterdir() if p.name.startswith("run-") and _is_one(p)]
            if runs:
                return _sorted(runs)
    if _is_one(Path(folder)):
        return [folder]
    inside = [p for p in Path(folder).iterdir() if _is_one(p)]
    if not inside:
        raise CheckpointError(
            f"{folder} holds neither a checkpoint nor runs; expected model.safetensors, "
            "pytorch_model.bin, an index of shards, or run-* files or folders"
        )
    return _sorted(inside)


def _is_one(path: Path) -> bool:
    """Whether `path` looks like one checkpoint; one with a broken layout counts, and is opened."""
    if path.name.startswith("."):
        return False
    if not path.is_dir():
        return path.name.endswith(_FILES)
    try:
        return weights_file(path) is not None
    except CheckpointFormatError:
        return True


def _sorted(paths: list[Path]) -> list[str]:
    return [os.fspath(path) for path in sorted(paths, key=lambda path: natural_key(path.name))]
