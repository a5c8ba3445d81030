"""Objects that are uploaded in parts and become visible whole, all of an output at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from stockpot._optional import require
from stockpot._records import loads
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.io.objects import PIECE_BYTES, Store, open_store, pool, said
from stockpot.io.s3_uploads import abort_uploads

STAGED = ".stockpot-staged"
"""The object that says that a folder is being put in place; who finds it finds no output."""

_READY_BYTES = 4 * PIECE_BYTES
_CONCURRENT = 6
_MAX_STRAY_BYTES = 1 << 30
_INDEX = ".index.json"
_LAST = ("config.json", "README.md", "stockpot.json")

UPLOAD_BYTES = 2 * (_READY_BYTES + (_CONCURRENT + 1) * 2 * PIECE_BYTES)
"""Memory of an output that is being uploaded: at a time two of its files, at the most."""


class Upload:
    """One object, written at any place of it and sent in order; visible after `complete`.

    It has state: the pieces that wait for their turn, and the thread that sends them. Writers wait
    where the network is slower than they are, never for each other.

    Args:
        store: where it goes.
        key: there.
        size: bytes that will be written, each once.
    """

    def __init__(self, store: Store, key: str, size: int) -> None:
        self.name = store.name(key)
        self.size = size
        self._store, self._key = store, key
        self._pieces: dict[int, bytes] = {}
        self._sent = self._tail = self._stray = 0
        self._state = threading.Condition()
        self._ending = self._abandoned = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, view: memoryview, offset: int) -> None:
        """Take `view` for the bytes from `offset` on.

        Raises:
            CheckpointError: the upload failed, or too much waits for what comes before it.
        """
        if not len(view):
            return
        data = bytes(view)
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._pieces[offset] = data
            self._stray += len(data)
            while self._tail in self._pieces:
                n = len(self._pieces[self._tail])
                self._tail, self._stray = self._tail + n, self._stray - n
            self._state.notify_all()
            if self._stray > _MAX_STRAY_BYTES:
                raise CheckpointError(
                    f"{self.name} cannot be uploaded: its tensors are made in another order than "
                    "they are stored; write it to a disk and copy it"
                )
            while self._tail - self._sent > _READY_BYTES and self._failure is None:
                self._state.wait()
            self._refuse_failed()

    def complete(self) -> None:
        """Make the object visible.

        Raises:
            CheckpointError: the upload failed, or the store has another size of it.
        """
        with self._state:
            self._ending = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._state:
            self._refuse_failed()
        found = self._store.find(self._key)
        if found is None or found[0] != self.size:
            raise CheckpointError(f"{self.name} was uploaded and is not there as it should be")

    def abandon(self) -> None:
        """Give up: the store forgets what was sent."""
        with self._state:
            self._abandoned = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _refuse_failed(self) -> None:
        if self._failure is not None:
            raise CheckpointError(
                f"{self.name} cannot be uploaded: {said(self._failure)}"
            ) from self._failure

    def _run(self) -> None:
        obstore = require("obstore")
        # Parts so long that next to nothing remains for the last one: it is held in memory until
        # the object is completed, and an output can have hundreds.
        n_parts = min(max(self.size // PIECE_BYTES, 1), 9000)
        part = max(self.size // n_parts, 5 << 20)
        try:
            obstore.put(
                self._store.handle,
                self._key,
                self._body(),
                use_multipart=True,
                chunk_size=part,
                max_concurrency=_CONCURRENT,
            )
        except BaseException as error:  # it is raised where the upload is waited for
            with self._state:
                self._failure = error
                self._state.notify_all()

    def _body(self) -> Iterator[bytes]:
        while True:
            with self._state:
                while not (
                    self._abandoned
                    or self._sent in self._pieces
                    or (self._ending and self._sent == self.size)
                ):
                    if self._ending and self._sent not in self._pieces:
                        raise CheckpointError(f"{self.name} lacks its byte {self._sent}")
                    self._state.wait()
                if self._abandoned:
                    raise CheckpointError(f"{self.name} was given up")
                if self._sent == self.size:
                    return
                data = self._pieces.pop(self._sent)
                self._sent += len(data)
                self._state.notify_all()
            yield data


class StagedObjects:
    """The objects of one output, before they are visible.

    It has state: the uploads that are open.

    Args:
        name: of the output, as given.
        folder: whether it is a folder of objects, or one.
        replaces: whether an object of an older folder goes with it, by its name in the folder.
    """

    def __init__(self, name: str, *, folder: bool, replaces: Callable[[str], bool]) -> None:
        self.store, self.key = open_store(name)
        if not self.key:
            raise CheckpointError(f"{name} names no object; expected a path in the bucket")
        self.name = name
        self.is_folder = folder
        self._replaces = replaces
        self._uploads: dict[str, Upload] = {}
        self._older: set[str] = set()

    def open(self, name: str, size: int) -> Upload:
        """Begin the upload of the object `name` of the folder, or of the one object."""
        key = f"{self.key}/{name}" if self.is_folder else self.key
        self._uploads[key] = upload = Upload(self.store, key, size)
        return upload

    def there(self) -> dict[str, int]:
        """Name → bytes of what is at the place of the output now."""
        if not self.is_folder:
            found = self.store.find(self.key)
            return {} if found is None else {"": found[0]}
        prefix = f"{self.key}/"
        return {k.removeprefix(prefix): size for k, size, _ in self.store.entries(self.key)}

    def clean(self, *, force: bool) -> set[str]:
        """Remove what stopped runs left; the names of an older output's objects.

        Raises:
            OutputExistsError: there is an older output and `force` is false.
        """
        abort_uploads(self.store.root, self.key, folder=self.is_folder)
        found = set(self.there())
        if STAGED in found:
            try:
                listed = loads(self.store.read(f"{self.key}/{STAGED}"))
            except ValueError:  # cut off, or somebody else's
                listed = []
            names = listed if isinstance(listed, list) else []
            left = found & {name for name in names if isinstance(name, str)}
            self.store.delete([f"{self.key}/{name}" for name in (*sorted(left), STAGED)])
            found -= {*left, STAGED}
        elif found and not force:
            raise OutputExistsError(self.name)
        self._older = found
        return found

    def commit(self, small: Mapping[str, bytes], *, force: bool) -> None:
        """Make all visible: weights, then small objects, then what readers look for first.

        Args:
            small: the other objects, by name in the folder; by key beside a single object.
            force: replace an older output.

        Raises:
            OutputExistsError: an output came there meanwhile, and `force` is false.
        """
        found = set(self.there())
        if found - self._older and not force:
            raise OutputExistsError(self.name)
        if not self.is_folder:
            # An older record describes the older weights: better none for a moment.
            self.store.delete([key for key in small if found])
            self._complete(self._uploads)
            for key, data in small.items():
                self.store.write(key, data)
            return
        prefix = f"{self.key}/"
        weights = [key.removeprefix(prefix) for key in self._uploads]
        self.store.write(prefix + STAGED, json.dumps([*weights, *small]).encode())
        self.store.delete([prefix + name for name in sorted(found) if self._replaces(name)])
        indices = [key for key in self._uploads if key.endswith(_INDEX)]
        self._complete(set(self._uploads) - set(indices))
        self._complete(indices)
        for name in sorted(small, key=lambda name: (name.endswith(_LAST), name)):
            self.store.write(prefix + name, small[name])
        self.store.delete([prefix + STAGED])

    def _complete(self, keys: Iterable[str]) -> None:
        list(pool().map(Upload.complete, [self._uploads[key] for key in keys]))

    def abandon(self) -> None:
        """Give up all that is not visible yet."""
        for upload in self._uploads.values():
            upload.abandon()


@contextmanager
def staged_objects(
    name: str, *, folder: bool, replaces: Callable[[str], bool]
) -> Iterator[StagedObjects]:
    """The objects of an output; those that were not committed when it ends are given up."""
    staged = StagedObjects(name, folder=folder, replaces=replaces)
    try:
        yield staged
    except BaseException:
        staged.abandon()
        raise


def refuse_existing(name: str, *, force: bool, folder: bool) -> None:
    """Raise unless an output may be put at `name`; see `atomic.refuse_existing`.

    Raises:
        OutputExistsError: there is one, and `force` is false.
        CheckpointError: `name` is not in a store that takes uploads.
    """
    found = StagedObjects(name, folder=folder, replaces=lambda name: False).there()
    if found and STAGED not in found and not force:
        raise OutputExistsError(name)
