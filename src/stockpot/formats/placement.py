"""Whether an output may lie where it shall: over no ingredient, and read by itself afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from stockpot._records import read_regular
from stockpot.errors import (
    CheckpointError,
    CheckpointFormatError,
    OptionalDependencyError,
    OutputExistsError,
)
from stockpot.formats import hub
from stockpot.formats.adapters.layout import CONFIG as ADAPTER_CONFIG
from stockpot.formats.output import RECORD, OutputPlan, OutputRequest, whole_name
from stockpot.formats.sidefiles import parts_of
from stockpot.formats.table import (
    FORMATS,
    MODEL_FOLDER,
    SAFETENSORS,
    output_format,
    recognise_folder,
    suffix_of,
)
from stockpot.io.objects import is_remote
from stockpot.io.storage import ScratchFolder
from stockpot.io.uploads import StagedObjects

_LISTS = ("modules.json", "model_index.json")
"""Files that say of which parts a model is made."""
_MAX_LIST_BYTES = 10_000_000


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
    found = recognise_folder(folder, FORMATS)
    return _Read(found.name, weights, (folder / ADAPTER_CONFIG).exists())
