"""The table of formats: one entry says all of a format; everything that asks for one asks here."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from stockpot._records import read_regular
from stockpot._types import StrPath
from stockpot.errors import (
    CheckpointError,
    CheckpointFormatError,
    OptionalDependencyError,
    OutputExistsError,
)
from stockpot.formats import hub
from stockpot.formats.adapters.layout import CONFIG as ADAPTER_CONFIG
from stockpot.formats.deepspeed import DeepSpeed
from stockpot.formats.distributed import ModelParallel, TorchDistributed
from stockpot.formats.flax import Flax
from stockpot.formats.folder import ModelFolder
from stockpot.formats.format import Format, Unreadable, first_of
from stockpot.formats.hdf5 import HDF5, Keras
from stockpot.formats.nemo import Nemo
from stockpot.formats.npz import Npz
from stockpot.formats.output import RECORD, OutputPlan, OutputRequest, whole_name
from stockpot.formats.safetensors import Safetensors
from stockpot.formats.sidefiles import parts_of
from stockpot.formats.torchfile import Torch
from stockpot.io.objects import is_remote
from stockpot.io.storage import ScratchFolder
from stockpot.io.uploads import StagedObjects

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

_LISTS = ("modules.json", "model_index.json")
"""Files that say of which parts a model is made."""
_MAX_LIST_BYTES = 10_000_000

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
        return _recognise_folder(path, every_format())
    found = first_of(every_format(), path)
    if found is not None:
        return found
    known = ", ".join(suffix for one in FORMATS if one.reads for suffix in one.suffixes)
    raise CheckpointFormatError(
        f"{path} is no checkpoint that is known: it begins neither as a zip archive nor as a "
        f"pickle or safetensors file; expected {known}, or a model folder"
    )


def _recognise_folder(path: Path, formats: Iterable[Format]) -> Format:
    folders = [one for one in formats if one.is_folder and one.recognises(path, b"")]
    # One that is read, if a model lies there for several libraries; MODEL_FOLDER says what it
    # expected.
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


def plan_output(request: OutputRequest) -> OutputPlan:
    """Decide the files of an output, by the format that its name asks for; writes nothing.

    A folder must not be one that holds an input, and no input is ever written over. Nor may it be
    one whose other files would be read in place of the output, unless they are an older output.

    Raises:
        OutputExistsError: the output is one of the inputs, or a folder that holds one; or something
            else in the folder would be read in place of it.
        CheckpointError: the format cannot hold it, or is not written.
    """
    found = output_format(request.path)
    if is_remote(os.fspath(request.path)) and found not in (SAFETENSORS, MODEL_FOLDER):
        raise CheckpointError(
            f"{os.fspath(request.path)}: safetensors files and folders are written to a store; end "
            "the name in .safetensors, or write to a disk and copy it there"
        )
    plan = found.plan(request)
    _refuse_inputs(plan)
    return _read_alone(plan) if plan.folder else plan


def _refuse_inputs(plan: OutputPlan) -> None:
    request, path = plan.request, plan.path
    target = _place_of(path)
    written = {target, f"{target}.{RECORD}"}
    for given in (*request.inputs, *([request.like] if request.like is not None else [])):
        source = _place_of(given.path)
        # What was computed may be called like a file below the target, and is none. What a push to
        # the hub replaces stays in its history.
        is_place = is_remote(given.path) or Path(given.path).exists()
        if is_place and (source == target or source.startswith(f"{target}/")):
            raise OutputExistsError(
                path,
                f"the output {path} {'is' if source == target else 'holds'} the ingredient "
                f"{given.path}, which its record needs: choose another output",
            )
        for file in given.files:
            part = _place_of(file.path)
            if part in written or (plan.folder and part.startswith(f"{target}/")):
                raise OutputExistsError(
                    path,
                    f"the output {path} {'would be written over' if part in written else 'holds'} "
                    f"{file.path}, which is a part of the ingredient {given.path}: choose another "
                    "output",
                )


def _place_of(name: str) -> str:
    """What all names of one file or folder have in common; links are followed.

    >>> _place_of("s3://b/m/"), _place_of("s3://b//m/a.safetensors")
    ('s3://b/m', 's3://b/m/a.safetensors')
    """
    if not is_remote(name):
        return Path(os.path.realpath(name)).as_posix()
    scheme, _, rest = name.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}/{key.strip('/')}"


_Files: TypeAlias = Mapping[str, Callable[[], bytes]]
"""Names of files in a folder, and what reads each."""


def _read_alone(plan: OutputPlan) -> OutputPlan:
    """`plan`, with the files that go of an older output which called its weights otherwise.

    Raises:
        OutputExistsError: something else there would be read in place of the output.
    """
    there = _files_at(plan.path)
    stay = {name for name in there if name not in plan.names and not plan.replaces(name)}
    if not stay:
        return plan
    if RECORD in there:
        # With its record beside it, what is read now is an older output.
        older = {*map(whole_name, _read_of(there).weights.values()), ADAPTER_CONFIG}
        # Of folders that are not written to, nothing goes.
        folders = {"", *(name.rpartition("/")[0] for name in plan.names)}
        gone = {n for n in stay if whole_name(n) in older and n.rpartition("/")[0] in folders}
        plan, stay = replace(plan, older=frozenset(gone)), stay - gone
    files = _files_of(plan)
    alone, beside = _read_of(files), _read_of({**{n: there[n] for n in stay}, **files})
    if alone != beside:
        read = {*map(whole_name, beside.weights.values())}
        others = sorted(name for name in stay if whole_name(name) in read)
        others = others or sorted(filter(suffix_of, stay)) or sorted(stay)
        raise OutputExistsError(
            plan.path,
            f"{plan.path} holds {', '.join(others[:5])}{', …' if others[5:] else ''}, which would "
            "be read beside the output or in place of it: choose another output, or remove it "
            "there",
        )
    return plan


def _files_at(path: str) -> _Files:
    """What is at the place of a folder now, and in the folders directly in it."""
    if hub.is_hub(path):
        try:
            return dict.fromkeys(hub.refuse_existing(path, force=True), bytes)
        except (CheckpointError, OptionalDependencyError):  # the push itself says it
            return {}
    if is_remote(path):
        staged = StagedObjects(path, folder=True, replaces=lambda name: False)
        return {
            name: partial(staged.store.read, f"{staged.key}/{name}")
            if size <= _MAX_LIST_BYTES
            else bytes
            for name, size in staged.there().items()
        }
    place = Path(path)
    found = [*place.glob("*"), *place.glob("*/*")] if place.is_dir() else []
    return {
        file.relative_to(place).as_posix(): partial(read_regular, file, _MAX_LIST_BYTES)
        for file in found
        if file.is_file()
    }


def _files_of(plan: OutputPlan) -> _Files:
    files: dict[str, Callable[[], bytes]] = {file.name: bytes for file in plan.files}
    files |= {name: partial(read_regular, Path(source)) for name, source in plan.copies}
    return files | {name: partial(bytes, data) for name, data in plan.rewritten}


class _Read(NamedTuple):
    """What is read of a folder.

    Attributes:
        format: of the folder.
        weights: the file with the weights of each part, by the name of the part.
        is_adapter: by the configuration that makes an adapter of any weights.
    """

    format: str
    weights: dict[str, str]
    is_adapter: bool


def _read_of(files: _Files) -> _Read:
    """What is read of a folder that holds `files`: asked of one with empty files of these names."""
    here = ScratchFolder()
    folder = Path(here.name, "model")
    folder.mkdir()
    for name, read in files.items():
        if name.count("/") > 1 or ".." in name.split("/"):
            continue
        # What cannot be read here, or lies below a file, is nothing that a reader could use.
        with contextlib.suppress(OSError, ValueError, CheckpointError):
            data = read() if name in _LISTS else b""
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    weights: dict[str, str] = {}
    with contextlib.suppress(CheckpointFormatError):  # nothing is read then
        for part in ("", *parts_of(folder)):
            file = MODEL_FOLDER.weights_file(folder / part)
            if file is not None:
                weights[part] = file.relative_to(folder).as_posix()
    # Those of other packages need not bear empty files.
    found = _recognise_folder(folder, FORMATS)
    return _Read(found.name, weights, (folder / ADAPTER_CONFIG).exists())
