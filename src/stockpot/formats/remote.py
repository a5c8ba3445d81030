"""Names that reach the network, and only when they say so: `hf:org/name`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from stockpot._optional import require
from stockpot.errors import CheckpointError, OptionalDependencyError

_PREFIX = "hf:"
# Two letters at least: `C:/` is a drive.
_SCHEME = re.compile(r"hf:|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_EXPORTS = ("onnx", "openvino", "coreml")
"""Folders of a repository with other forms of its model."""


def is_remote(name: str) -> bool:
    """Whether `name` asks for the network.

    >>> is_remote("hf:org/name"), is_remote("org/name")
    (True, False)
    """
    return name.startswith(_PREFIX)


def has_scheme(name: str) -> bool:
    """Whether `name` is that of something elsewhere, whether or not it can be fetched from there.

    >>> [has_scheme(name) for name in ("hf:org/name", "s3://b/a.pt", "/runs/a.pt", "C:/runs/a.pt")]
    [True, True, False, False]
    """
    return is_remote(name) or _SCHEME.match(name) is not None


def local_name(path: Path) -> str:
    """The name of a file that was found on disk, so spelled that it never asks for the network.

    >>> local_name(Path("runs/a.pt")), local_name(Path("hf:a")) == os.path.join(".", "hf:a")
    ('runs/a.pt', True)
    """
    name = os.fspath(path)
    return os.path.join(os.curdir, name) if has_scheme(name) else name  # noqa: PTH118


def looks_like_hub_name(name: str) -> bool:
    """Whether a path that does not exist may have been meant for the hub.

    >>> looks_like_hub_name("org/name"), looks_like_hub_name("runs/a.pt"), looks_like_hub_name("x")
    (True, False, False)
    """
    organisation, slash, model = name.partition("/")
    parts = bool(organisation.strip(".~")) and slash == "/" and bool(model) and "/" not in model
    return parts and not name.endswith(_WEIGHTS)


def cached(name: str) -> str | None:
    """The folder of model `name` in the hub's cache on this machine; None where it is not there.

    Nothing reaches the network.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None
    try:
        hub = require("huggingface_hub", extra="hf")
    except OptionalDependencyError:
        return None
    for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                 "model_index.json"):  # fmt: skip
        found = hub.try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return os.path.dirname(found)  # noqa: PTH120
    return None


def fetch(name: str) -> str:
    """Download the model `hf:org/name` or `hf:org/name@revision`; its folder in the hub's cache.

    Only what a checkpoint needs is downloaded: the safetensors files, else those of torch, and the
    small files beside them.

    Raises:
        OptionalDependencyError: huggingface-hub is not installed.
        CheckpointError: the hub cannot be reached, or has no such model.
    """
    hub = require("huggingface_hub", extra="hf")
    repository, _, revision = name.removeprefix(_PREFIX).partition("@")
    try:
        files = wanted(hub.list_repo_files(repository, revision=revision or None))
        return str(
            hub.snapshot_download(repository, revision=revision or None, allow_patterns=files)
        )
    # Errors of the connection are those of whichever HTTP library this version of the hub's package
    # uses; they share no base with the hub's own.
    except Exception as error:
        raise CheckpointError(f"{name} cannot be fetched: {error}") from error


def wanted(files: Iterable[str]) -> list[str]:
    """Side files, and the weights of one format, of the model and of the parts that it lists."""
    listed = [*files]
    of_parts = not {"modules.json", "model_index.json"}.isdisjoint(listed)
    folders: dict[str, list[str]] = {}
    for file in listed:
        folder, _, name = file.rpartition("/")
        if not folder or (of_parts and "/" not in folder and folder not in _EXPORTS):
            folders.setdefault(folder, []).append(name)
    found = []
    for folder, names in folders.items():
        prefix = f"{folder}/" if folder else ""
        found += [prefix + n for n in names if not n.endswith(_WEIGHTS)]
        found += [prefix + n for n in _weights_of(names)]
    return sorted(found)


def _weights_of(names: Iterable[str]) -> list[str]:
    for start, end in (
        ("", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("diffusion_pytorch_model", ".bin"),
        ("flax_model", ".msgpack"),
    ):
        found = [name for name in names if name.startswith(start) and name.endswith(end)]
        if found:
            return found
    return []
