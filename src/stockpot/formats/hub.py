"""Models of the Hugging Face hub: read by ranges, from its cache where it has them, and pushed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from stockpot._optional import require
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.formats import remote
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format
from stockpot.formats.stores import through_stubs
from stockpot.io.objects import RemoteFile, Store, said
from stockpot.io.storage import Folder, ScratchFolder

_MAX_SIDE_BYTES = 256 << 20


@dataclass(frozen=True)
class HubName:
    """A name such as `hf:org/name@revision:file`; revision and file may be empty."""

    repository: str
    revision: str = ""
    file: str = ""

    @classmethod
    def parse(cls, name: str) -> HubName:
        """What `name` says.

        >>> HubName.parse("hf:org/name@v2:unet/model.safetensors")
        HubName(repository='org/name', revision='v2', file='unet/model.safetensors')
        """
        rest, _, file = name.removeprefix("hf:").partition(":")
        repository, _, revision = rest.partition("@")
        return cls(repository, revision, file)


def open_hub(
    name: str, formats: Callable[[], Iterable[Format]], here: Callable[[Path], Checkpoint]
) -> Checkpoint:
    """The model `hf:org/name[@revision][:file]`; weights are read by ranges and not downloaded.

    Side files go into the hub's cache, and weights that it has come from there: of a model that was
    downloaded before, nothing is asked of the network but which revision is meant, and not even
    that with HF_HUB_OFFLINE=1. Weights of torch are downloaded.

    Args:
        name: as the user gave it.
        formats: gives every format.
        here: opens what lies on this machine.

    Raises:
        OptionalDependencyError: huggingface-hub is not installed.
        CheckpointError: the hub cannot be reached, or has no such model.
    """
    hub, asked = require("huggingface_hub", extra="hf"), HubName.parse(name)
    try:
        return _opened(hub, name, asked, formats, here)
    except (CheckpointError, ImportError):
        raise
    # Errors of the connection are those of whichever HTTP library this version of the hub's package
    # uses; they share no base with the hub's own.
    except Exception as error:
        raise CheckpointError(f"{name} cannot be fetched: {said(error)}") from error


def _opened(
    hub: Any,
    name: str,
    asked: HubName,
    formats: Callable[[], Iterable[Format]],
    here: Callable[[Path], Checkpoint],
) -> Checkpoint:
    try:
        info = hub.HfApi().model_info(
            asked.repository, revision=asked.revision or None, files_metadata=True
        )
    except Exception as error:
        try:
            folder = hub.snapshot_download(
                asked.repository, revision=asked.revision or None, local_files_only=True
            )
        except Exception:
            raise error from None
        return _local(name, Path(folder, asked.file), here)
    sizes = {one.rfilename: (one.size, one.blob_id) for one in info.siblings}
    wanted = [asked.file] if asked.file else remote.wanted(sizes)
    lost = [file for file in wanted if file not in sizes]
    if lost:
        raise CheckpointError(f"{name}: the model has no file {lost[0]}")
    far = [file for file in wanted if file.endswith(".safetensors")]
    cached = [
        isinstance(hub.try_to_load_from_cache(asked.repository, file, revision=info.sha), str)
        for file in far
    ]
    small = {"revision": info.sha, "allow_patterns": wanted}
    if all(cached):  # or there are none
        folder = hub.snapshot_download(asked.repository, **small)
        return _local(name, Path(folder, asked.file), here)
    scratch, files = ScratchFolder(), dict[Path, RemoteFile]()
    store = _store(hub, asked.repository, info.sha)
    for file in far:
        place = _place(scratch, file)
        place.touch()
        size, blob = sizes[file]
        files[place] = RemoteFile(store, file, size, blob or info.sha)
    if asked.file:
        found = through_stubs(next(iter(files)), scratch, files, formats)
    else:
        small["allow_patterns"] = [file for file in wanted if file not in far]
        _copy_small(hub, asked.repository, small, scratch, sizes)
        found = through_stubs(Path(scratch.name), scratch, files, formats)
    found.path = name
    return found


def _local(name: str, path: Path, here: Callable[[Path], Checkpoint]) -> Checkpoint:
    opened = here(path)
    opened.path = name
    opened.mirror = Folder(os.fspath(path))
    return opened


def _copy_small(
    hub: Any,
    repository: str,
    options: dict[str, Any],
    scratch: ScratchFolder,
    sizes: Mapping[str, tuple[int, str]],
) -> None:
    """Side files, through the hub's cache; not as links, which would lead out of the folder."""
    names = options["allow_patterns"]
    if sum(sizes[file][0] or 0 for file in names) > _MAX_SIDE_BYTES:
        raise CheckpointError(f"hf:{repository} holds more than 256 MB beside its weights")
    if names:
        folder = hub.snapshot_download(repository, **options)
        for file in names:
            shutil.copyfile(Path(folder, file), _place(scratch, file))


def _place(scratch: ScratchFolder, file: str) -> Path:
    parts = PurePosixPath(file).parts
    if ".." in parts or PurePosixPath(file).is_absolute():
        raise CheckpointError(f"the model has a file called {file!r}, outside of its folder")
    place = Path(scratch.name, *parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _store(hub: Any, repository: str, commit: str) -> Store:
    """The files of one commit, as a web server has them; what a commit holds never changes."""
    stores = require("obstore.store")
    token = hub.get_token()
    client: dict[str, Any] = {"allow_http": True, "timeout": timedelta(minutes=5)}
    if token:
        client["default_headers"] = {"Authorization": f"Bearer {token}"}
    base = f"{hub.constants.ENDPOINT}/{repository}/resolve/{commit}"
    handle = stores.HTTPStore.from_url(base, client_options=client)
    return Store(handle, f"hf:{repository}:", lists=False, versions=False)


def is_hub(name: str) -> bool:
    """Whether `name` is that of a model of the hub."""
    return remote.is_remote(name)


def refuse_existing(name: str, *, force: bool) -> set[str]:
    """The files that are at `name` now; to be asked before an hour of work.

    Raises:
        OutputExistsError: there are weights, and `force` is false.
        CheckpointError: nobody is logged in, or the hub cannot be reached.
    """
    hub, errors = require("huggingface_hub", extra="hf"), require("huggingface_hub.errors")
    asked = HubName.parse(name)
    if asked.file:
        raise CheckpointError(f"{name}: a whole folder is pushed; leave out :{asked.file}")
    api = hub.HfApi()
    try:
        api.whoami()
        info = api.model_info(asked.repository, revision=asked.revision or None)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return set()
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be pushed to: {said(error)}; log in with hf auth login, or set HF_TOKEN"
        ) from error
    found = {str(one.rfilename) for one in info.siblings}
    if not force and any(file.endswith((".safetensors", ".bin")) for file in found):
        raise OutputExistsError(name)
    return found


def push(folder: Path, name: str, *, gone: list[str]) -> None:
    """Make `folder` the model `name` by one commit; a model that is new is private.

    Args:
        folder: what is pushed.
        name: `hf:org/name`, or `hf:org/name@branch` for a branch, made where it is missing.
        gone: files of an older output that go in the same commit.

    Raises:
        CheckpointError: the hub refuses it, or cannot be reached.
    """
    hub, asked = require("huggingface_hub", extra="hf"), HubName.parse(name)
    api = hub.HfApi()
    try:
        api.create_repo(asked.repository, private=True, exist_ok=True)
        if asked.revision:
            api.create_branch(asked.repository, branch=asked.revision, exist_ok=True)
        api.upload_folder(
            repo_id=asked.repository,
            folder_path=folder,
            revision=asked.revision or None,
            delete_patterns=gone or None,
            commit_message="A soup made by stockpot",
        )
    except Exception as error:
        raise CheckpointError(f"{name} cannot be pushed to: {said(error)}") from error
