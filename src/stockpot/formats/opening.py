"""From a path to a checkpoint, and from arguments to paths."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
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
from stockpot.formats.hub import open_hub
from stockpot.formats.names import without_wrappers
from stockpot.formats.quantised import note_of
from stockpot.formats.sections import sections
from stockpot.formats.stores import open_remote
from stockpot.formats.table import every_format, recognise
from stockpot.formats.torchfile import Torch, TorchValue
from stockpot.io.objects import is_remote
from stockpot.io.storage import MappedFile


def open(path: StrPath, *, key: str | None = None) -> Checkpoint:
    """The checkpoint at `path`: a file, or a model folder. Only headers are read.

    Nothing in the file is executed, and nothing reaches the network unless `path` is a name such as
    `hf:org/name`. The file must not change while the checkpoint is in use.

    Tensors that are stored sparse (sparse-bitmask) are seen as the dense ones that they stand for,
    and `weight_orig` with `weight_mask` of `torch.nn.utils.prune` as the pruned `weight`; `notes`
    says so.

    Args:
        path: a file or folder of one of the formats in `stockpot.formats.FORMATS`, such as
            `.safetensors`, `.pt` or `.ckpt`, and folders as transformers writes them.
        key: the section of a torch file that holds the tensors, such as `"state_dict"` or
            `"ema.model"`; needed only where several could be meant.

    Raises:
        CheckpointError: there is nothing at `path`, or it cannot be read.
        CheckpointFormatError: it is damaged or no checkpoint; or several sections could be meant.
        UnsafeCheckpointError: a tensor can only be had by running code from the file.
    """
    name = os.fspath(path).removeprefix("file://")
    if remote.is_remote(name):
        stored = open_hub(name, every_format, lambda path: _as_stored(os.fspath(path), key))
    else:
        stored = _as_stored(name, key)
    found = decode(stored)
    _refuse_placeholders(found)
    quantised = note_of(found.values())
    if quantised is not None:
        found.notes = (*found.notes, quantised)
    return found


def each_section(path: StrPath) -> Iterator[Checkpoint]:
    """A torch file on a disk as each of its sections that hold tensors; nothing for other files."""
    file = Path(path)
    try:
        if not file.is_file() or not isinstance(recognise(file), Torch):
            return
        places = [place for place, _ in sections(TorchValue(MappedFile(file)).root) if place]
    except (CheckpointError, OSError):
        return
    for place in places:
        with contextlib.suppress(CheckpointError):
            yield open(path, key=place)


def _as_stored(name: str, key: str | None) -> Checkpoint:
    if is_remote(name):
        return open_remote(name, every_format)
    if "\0" in name:
        raise CheckpointError(f"{name!r:.200} is no path: it holds a null character")
    path = Path(name)
    try:
        mode = path.stat().st_mode
        # Before it is opened: opening a named pipe would wait for somebody to write to it.
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise CheckpointFormatError(f"{name} is not a regular file")
        found = recognise(path).open(path, key=key)
    except OSError as error:
        raise CheckpointError(_unreadable(name, error)) from error
    found.path = name
    return found


def _refuse_placeholders(checkpoint: Checkpoint) -> None:
    """Refuse what a rank of ZeRO-3 saves in place of weights that lie in parts with all ranks."""
    weights = [spec for spec in checkpoint.values() if spec.dtype.mixable]
    empty = [spec.name for spec in weights if spec.shape == (0,)]
    if 2 * len(empty) > len(weights):
        raise CheckpointFormatError(
            f"{checkpoint.path}: {len(empty)} of {len(weights)} tensors are empty ({empty[0]}, …): "
            "placeholders of weights that were saved in parts (DeepSpeed ZeRO-3). Give the folder "
            "with the partitions, or save with stage3_gather_16bit_weights_on_model_save"
        )


def decode(stored: Checkpoint) -> Checkpoint:
    """`stored` with wrappers' prefixes removed, and tensors that encode others as those.

    These are bitmasks of sparse tensors, and the pairs of `torch.nn.utils.prune`.
    """
    plain = without_wrappers(stored)
    if is_compressed(plain):
        plain = CompressedCheckpoint(plain)
    return PruneKeysCheckpoint(plain) if pruned_names(plain) else plain


def _unreadable(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        near = _nearest(Path(name))
        hint = f"; did you mean {near}?" if near else ""
        if remote.has_scheme(name):
            hint = " (a name with :// is given as text: a Path drops one of its slashes)"
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
