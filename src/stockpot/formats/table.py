"""The table of formats: one entry says all of a format; everything that asks for one asks here."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from stockpot._types import StrPath
from stockpot.errors import CheckpointFormatError, OutputExistsError
from stockpot.formats.folder import ModelFolder
from stockpot.formats.format import HEAD_BYTES, Format, Unreadable
from stockpot.formats.output import RECORD, OutputPlan, OutputRequest
from stockpot.formats.safetensors import Safetensors
from stockpot.formats.torchfile import Torch

_EXPORT = "average the checkpoints that it was exported from, and export the result"

SAFETENSORS = Safetensors()
MODEL_FOLDER = ModelFolder(lambda: tuple(every_format()))

FORMATS: tuple[Format, ...] = (
    SAFETENSORS,
    Unreadable(
        "gguf",
        "a GGUF file of llama.cpp",
        "its weights are quantised; average before you export",
        suffixes=(".gguf",),
        magic=b"GGUF",
    ),
    Unreadable(
        "hdf5",
        "an HDF5 file (Keras, TensorFlow)",
        "load it with its library and save the weights as safetensors",
        suffixes=(".h5", ".hdf5"),
        magic=b"\x89HDF\r\n\x1a\n",
    ),
    Unreadable("onnx", "an ONNX graph", _EXPORT, suffixes=(".onnx", ".onnx_data")),
    Unreadable("tflite", "a TensorFlow Lite model", _EXPORT, suffixes=(".tflite",)),
    Unreadable(
        "keras",
        "a Keras archive",
        "load it with Keras and save the weights as safetensors",
        suffixes=(".keras",),
    ),
    Unreadable(
        "flax",
        "a file of flax (msgpack)",
        "load it with transformers (from_flax=True) and save it with save_pretrained",
        suffixes=(".msgpack",),
    ),
    Unreadable(
        "npz",
        "an archive of NumPy",
        "open it with numpy.load and give the dictionary to stockpot, or save it as safetensors",
        suffixes=(".npz",),
    ),
    Unreadable(
        "rust",
        "a file of rust-bert",
        "use the safetensors or torch file of the same model",
        suffixes=(".ot",),
    ),
    Torch(),
    MODEL_FOLDER,
)
"""Every format that comes with stockpot, in the order in which they are asked to recognise."""

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
    is_folder, head = path.is_dir(), b""
    if not is_folder:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    for one in every_format():
        if one.is_folder is is_folder and one.recognises(path, head):
            return one
    if is_folder:
        return MODEL_FOLDER  # which says what it expected
    known = ", ".join(suffix for one in FORMATS if one.reads for suffix in one.suffixes)
    raise CheckpointFormatError(
        f"{path} is no checkpoint that is known: it begins neither as a zip archive nor as a "
        f"pickle or safetensors file; expected {known}, or a model folder"
    )


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
    """The format in which an output of this name is written: by its suffix, else a folder."""
    suffix = suffix_of(path).lower()
    return next((one for one in every_format() if suffix in one.suffixes), MODEL_FOLDER)


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
    path = Path(path)
    return path / RECORD if writes_folder(path) else path.with_name(f"{path.name}.{RECORD}")


def plan_output(request: OutputRequest) -> OutputPlan:
    """Decide the files of an output, by the format that its name asks for; writes nothing.

    A folder must not be one that holds an input, and no input is ever written over.

    Raises:
        OutputExistsError: the output is one of the inputs, or a folder that holds one.
        CheckpointError: the format cannot hold it, or is not written.
    """
    _refuse_inputs(request)
    return output_format(request.path).plan(request)


def _refuse_inputs(request: OutputRequest) -> None:
    path = os.fspath(request.path)
    target = Path(os.path.realpath(path))
    for given in (*request.inputs, *([request.like.path] if request.like is not None else [])):
        source = Path(os.path.realpath(given))
        if source.exists() and (source == target or target in source.parents):
            raise OutputExistsError(
                path,
                f"the output {path} {'is' if source == target else 'holds'} the ingredient "
                f"{os.fspath(given)}, which its record needs: choose another output",
            )
