"""The table of formats: one entry says all of a format; everything that asks for one asks here."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.deepspeed import DeepSpeed
from stockpot.formats.distributed import ModelParallel, TorchDistributed
from stockpot.formats.flax import Flax
from stockpot.formats.folder import ModelFolder
from stockpot.formats.format import Format, Unreadable, first_of
from stockpot.formats.hdf5 import HDF5, Keras
from stockpot.formats.nemo import Nemo
from stockpot.formats.npz import Npz
from stockpot.formats.output import RECORD
from stockpot.formats.safetensors import Safetensors
from stockpot.formats.torchfile import Torch

_EXPORT = "average the checkpoints that it was exported from, and export the result"
_TENSORFLOW = "average weights of Keras (.weights.h5, .keras) or torch, and export the result"

SAFETENSORS = Safetensors()
MODEL_FOLDER = ModelFolder(lambda: tuple(every_format()))

FORMATS: tuple[Format, ...] = (
    Unreadable(
        "git-lfs",
        "a pointer of git-lfs in place of the file",
        "fetch the file itself: git lfs pull",
        magic=b"version https://git-lfs",
    ),
    SAFETENSORS,
    Unreadable(
        "gguf",
        "a GGUF file of llama.cpp",
        "its weights are quantised; average before you export",
        suffixes=(".gguf",),
        magic=b"GGUF",
    ),
    HDF5(),
    Keras(),
    Unreadable("onnx", "an ONNX graph", _EXPORT, suffixes=(".onnx", ".onnx_data")),
    Unreadable("tflite", "a TensorFlow Lite model", _EXPORT, suffixes=(".tflite",)),
    Unreadable(
        "tensorflow",
        "a graph or checkpoint of TensorFlow",
        _TENSORFLOW,
        suffixes=(".pb", ".ckpt.index", ".ckpt.meta", ".data-00000-of-00001"),
    ),
    Unreadable(
        "tensorflow-folder",
        "a model or checkpoint folder of TensorFlow",
        _TENSORFLOW,
        members=("saved_model.pb", "*.ckpt*.index"),
    ),
    Unreadable(
        "orbax",
        "a folder of orbax",
        "restore it, and save flax.serialization.to_bytes(params) as .msgpack",
        members=("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA"),
    ),
    Flax(),
    Npz(),
    Nemo(),
    Unreadable(
        "rust",
        "a file of rust-bert",
        "use the safetensors or torch file of the same model",
        suffixes=(".ot",),
    ),
    Torch(),
    TorchDistributed(),
    DeepSpeed(),
    ModelParallel(),
    MODEL_FOLDER,
)
"""Every format that comes with stockpot, in the order in which they are asked to recognise."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z_]{1,11}$")
"""The suffix of a file, and not the end of `llama-3.1-8b` or `runs.v2`."""

_registered: list[Format] = []


def register(format: Format) -> None:
    """Add a format to those that this process reads and writes; nothing else remembers it.

    Formats of the table are asked first, so that none of them can be replaced. A package that
    brings a format to the command line names it in its entry points instead, and is not imported
    before a path asks for it:

        [project.entry-points."stockpot.formats"]
        toy = "toy_weights:ToyFormat"        # a subclass of Format, or an instance

    Raises:
        ValueError: a format has its name or one of its suffixes already.
    """
    for other in (*FORMATS, *_registered):
        shared = [*({format.name} & {other.name}), *({*format.suffixes} & {*other.suffixes})]
        if shared:
            raise ValueError(f"the format {other.name!r} is known by {shared[0]!r} already")
    _registered.append(format)


def every_format() -> Iterator[Format]:
    """The formats of the table, those that were registered, and those of installed packages."""
    yield from FORMATS
    yield from _registered
    yield from _of_packages()


@functools.cache
def _of_packages() -> tuple[Format, ...]:
    from importlib.metadata import entry_points

    found = [point.load() for point in entry_points(group="stockpot.formats")]
    return tuple(one() if isinstance(one, type) else one for one in found)


def recognise(path: Path) -> Format:
    """The format of what is at `path`.

    Raises:
        CheckpointFormatError: it is of none.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return recognise_folder(path, every_format())
    found = first_of(every_format(), path)
    if found is not None:
        return found
    known = ", ".join(suffix for one in FORMATS if one.reads for suffix in one.suffixes)
    raise CheckpointFormatError(
        f"{path} is no checkpoint that is known: it begins neither as a zip archive nor as a "
        f"pickle or safetensors file; expected {known}, or a model folder"
    )


def recognise_folder(path: Path, formats: Iterable[Format]) -> Format:
    """That of `formats` which the folder at `path` is of; a model folder where none is.

    Where a model lies there for several libraries, one that is read.
    """
    folders = [one for one in formats if one.is_folder and one.recognises(path, b"")]
    # MODEL_FOLDER says what it expected.
    return next((one for one in folders if one.reads), (folders or [MODEL_FOLDER])[0])


def suffix_of(path: StrPath, *, readable: bool = False) -> str:
    """The ending of `path` by which a format knows its files; empty for none.

    Args:
        path: need not exist.
        readable: leave out formats that are only named.

    >>> suffix_of("runs/a.safetensors"), suffix_of("greedy of 2"), suffix_of("llama-3.1-8b")
    ('.safetensors', '', '')
    """
    name = os.path.basename(os.fspath(path))  # noqa: PTH119 - a Path would drop what ends in "/"
    lower = name.lower()
    for one in every_format():
        for suffix in one.suffixes:
            if lower.endswith(suffix) and (one.reads or not readable):
                return name[-len(suffix) :]
    return ""


def output_format(path: StrPath) -> Format:
    """The format in which an output of this name is written: by its suffix; without one, a folder.

    A folder that is there, or a name that ends in `/`, is a folder whatever its name.

    Raises:
        CheckpointError: a suffix that no format has, or a place that is not on a disk.
    """
    name = os.fspath(path)
    if _SCHEME.match(name) and not name.startswith(("s3://", "gs://", "az://")):
        raise CheckpointError(
            f"{name}: outputs are written to a disk or to s3://, gs:// and az://; write to one of "
            "these and copy it there"
        )
    suffix = suffix_of(name).lower()
    if suffix:
        return next(one for one in every_format() if suffix in one.suffixes)
    unknown = _SUFFIX.search(name)
    if unknown is None or Path(name).is_dir():
        return MODEL_FOLDER
    known = [suffix for one in every_format() if one.writes for suffix in one.suffixes]
    near = difflib.get_close_matches(unknown[0].lower(), known, n=1)
    raise CheckpointError(
        f"{name}: no format ends in {unknown[0]}{f' (did you mean {near[0]}?)' if near else ''}; "
        f"expected {', '.join(known)}, or for a model folder a name without suffix or {name}/"
    )


def writes_folder(path: StrPath) -> bool:
    """Whether an output of this name is a folder.

    >>> writes_folder("soup.safetensors"), writes_folder("soup.pt"), writes_folder("soups/llama-8b")
    (False, False, True)
    """
    return output_format(path).is_folder


def record_path(path: StrPath) -> Path:
    """Where the record of the output `path` lies: beside a file, or inside a folder.

    >>> str(record_path("out/soup.safetensors")), str(record_path("out/soup"))
    ('out/soup.safetensors.stockpot.json', 'out/soup/stockpot.json')
    """
    file = suffix_of(path) or _SUFFIX.search(os.fspath(path))
    path = Path(path)
    return path.with_name(f"{path.name}.{RECORD}") if file and not path.is_dir() else path / RECORD
