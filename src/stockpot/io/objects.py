"""Objects in a store (S3, Google Cloud Storage, Azure) or on a web server, read by ranges.

`obstore` asks each store, with retries of its own, and finds credentials and endpoints where each
cloud's users keep them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_NAME`, and so on; `credentials` finds the rest. Why it and not fsspec:
docs/design/object-stores.md.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from stockpot._optional import require
from stockpot.errors import CheckpointError
from stockpot.io.credentials import aws_profile, how_to_sign
from stockpot.io.storage import NO_ETAG, FileId

PIECE_BYTES = 8 << 20
"""Most that one request reads or writes."""
SCHEMES = ("s3", "gs", "az", "http", "https")

_Raw = npt.NDArray[np.uint8]
_T = TypeVar("_T")

_GAP_BYTES = 64 << 10  # read along rather than asked for apart
_HEAD_BYTES = 256 << 10  # holds the header of most files
_PARALLEL = 16
_READ_AHEAD = 2
_ATTEMPTS = 5
_RETRY_SECONDS = 120  # in which obstore tries again by itself
_MAX_OBJECTS = 100_000
_GAVE_UP = "retries, max_retries"  # what obstore says after it has tried again
_NO_BUCKET = re.compile("<Code>(NoSuchBucket|ContainerNotFound)</Code>")


@dataclass(frozen=True)
class Store:
    """A bucket, a container, or a web server.

    Attributes:
        handle: obstore's.
        root: what stands before a key in a name: `s3://bucket/`.
        lists: whether it can say which objects it has; a web server cannot.
        versions: whether answers say the version that they are of; where a name never changes what
            it stands for, they need not.
        reached: set as soon as it has answered once.
    """

    handle: Any = field(repr=False)  # obstore 0.12 panics where it shows one for Azure
    root: str
    lists: bool = True
    versions: bool = True
    reached: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def name(self, key: str) -> str:
        """An object's name, as people write it."""
        return self.root + key

    def entries(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """(key, bytes, ETag) of every object below the folder `prefix`, in the order of keys.

        Raises:
            CheckpointError: the store does not answer, or there are more than 100,000.
        """
        obstore = require("obstore")

        def listed() -> list[Any]:
            found: list[Any] = []
            for some in obstore.list(self.handle, prefix or None):
                found += some
                if len(found) > _MAX_OBJECTS:
                    break
            return found

        found = self.asked(prefix, listed)
        if len(found) > _MAX_OBJECTS:
            raise CheckpointError(
                f"{self.name(prefix)} holds more than {_MAX_OBJECTS} objects; name a folder with "
                "fewer, such as that of one model"
            )
        for meta in sorted(found, key=lambda meta: str(meta["path"])):
            yield str(meta["path"]), int(meta["size"]), _etag(meta)

    def find(self, key: str) -> tuple[int, str] | None:
        """Bytes and ETag of the object `key`; None where there is none."""
        obstore, exceptions = require("obstore"), require("obstore.exceptions")
        try:
            meta = self.asked(key, lambda: obstore.head(self.handle, key))
        except _MissingError:
            return None
        except exceptions.BaseError as error:  # pragma: no cover - all are translated
            raise CheckpointError(said(error)) from None
        return int(meta["size"]), _etag(meta)

    def read(self, key: str) -> bytes:
        """The whole of a small object.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        obstore = require("obstore")
        return self.asked(key, lambda: bytes(obstore.get(self.handle, key).bytes()))

    def write(self, key: str, data: bytes) -> None:
        """Put a small object, over an older one."""
        obstore = require("obstore")
        self.asked(key, lambda: obstore.put(self.handle, key, data, use_multipart=False))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is gone is no error."""
        obstore = require("obstore")

        def remove(key: str) -> None:
            with contextlib.suppress(_MissingError):
                self.asked(key, lambda: obstore.delete(self.handle, key))

        list(pool().map(remove, keys))

    def asked(self, key: str, call: Callable[[], _T]) -> _T:
        """What `call` gives, tried again where the connection fails; errors in our words.

        obstore tries again itself where a store is busy or silent, but not where an answer breaks
        off. Once it has given up, a store that answered before is asked further; one that never did
        is misspelt more often than not, and nobody should wait for it.
        """
        exceptions = require("obstore.exceptions")
        final = (
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.NotSupportedError,
            exceptions.InvalidPathError,
            exceptions.UnknownConfigurationKeyError,
        )
        for attempt in range(_ATTEMPTS):
            try:
                found = call()
                self.reached.set()
                return found
            except (FileNotFoundError, exceptions.NotFoundError):
                self.reached.set()
                raise _MissingError(f"there is nothing at {self.name(key)}") from None
            except exceptions.PreconditionError:
                raise CheckpointError(_changed(self.name(key))) from None
            except (exceptions.BaseError, OSError) as error:
                if _NO_BUCKET.search(str(error)):  # obstore has no error of its own for it
                    raise CheckpointError(
                        f"{self.name(key)} cannot be used: there is no {self.root.rstrip('/')}"
                    ) from None
                text = f"{self.name(key)} cannot be used: {said(error)}"
                if not self.reached.is_set():
                    if remedy := how_to_sign(self.root, error):
                        raise CheckpointError(f"{text}. {remedy}") from None
                    if _GAVE_UP in str(error):
                        raise CheckpointError(text) from None
                if attempt + 1 == _ATTEMPTS or isinstance(error, final):
                    raise CheckpointError(text) from None
            time.sleep(0.1 * 2**attempt * (1 + random.random()))
        raise AssertionError


class _MissingError(CheckpointError):
    """There is no such object."""


def is_remote(name: str) -> bool:
    """Whether `name` is that of an object or a folder in a store.

    >>> is_remote("s3://bucket/model"), is_remote("runs/a.pt"), is_remote("C:/runs/a.pt")
    (True, False, False)
    """
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme in SCHEMES


def shown(name: str) -> str:
    """`name` as it may be printed and recorded: without what a web address says beside its path.

    >>> shown("https://user:secret@host/m.safetensors?X-Amz-Signature=1f"), shown("s3://b/a?b")
    ('https://host/m.safetensors', 's3://b/a?b')
    """
    if not name.startswith(("http://", "https://")):
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_store(name: str) -> tuple[Store, str]:
    """The store that `name` is in, and the key there, without `/` at its end.

    Raises:
        CheckpointError: it names no bucket, or the configuration in the environment is unusable.
        OptionalDependencyError: obstore is not installed.
    """
    scheme, _, rest = name.partition("://")
    if scheme in ("http", "https"):
        parts = urlsplit(name)
        base = f"{parts.scheme}://{parts.netloc}/" + (f"?{parts.query}" if parts.query else "")
        root = shown(f"{parts.scheme}://{parts.netloc}/")
        return Store(_handle("http", base), root, lists=False), unquote(parts.path).strip("/")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise CheckpointError(f"{name} names no bucket; expected {scheme}://BUCKET/PATH")
    return Store(_handle(scheme, bucket), f"{scheme}://{bucket}/"), key.strip("/")


@functools.lru_cache(maxsize=64)
def _handle(kind: str, where: str) -> Any:
    """obstore's handle of a bucket, container or server; connections are shared by its users."""
    from datetime import timedelta

    store, exceptions = require("obstore.store"), require("obstore.exceptions")
    # Plain http is for endpoints that the user gave, such as MinIO in the same rack.
    client = {
        "allow_http": True,
        "timeout": timedelta(minutes=5),
        "connect_timeout": timedelta(seconds=20),
    }
    retry = {"max_retries": 10, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
    options = {"client_options": client, "retry_config": retry}
    try:
        if kind == "http":
            return store.HTTPStore.from_url(where, **options)
        if kind == "gs":
            return store.GCSStore(where, **options)
        if kind == "az":
            return store.AzureStore(where, **options)
        return store.S3Store(where, **options, **aws_profile())
    except (exceptions.BaseError, ValueError) as error:
        text = f"{kind}://{shown(where)} cannot be used: {said(error)}"
        remedy = how_to_sign(f"{kind}://", error)
        raise CheckpointError(f"{text}. {remedy}" if remedy else text) from None


class RemoteFile:
    """An object that is read by ranges; every answer is checked to be of the same version.

    It has state: the first bytes, which are asked for when it is made, so that the headers of many
    files come at once.

    Args:
        store: where it is.
        key: there.
        size: bytes.
        etag: of the version that is read; empty where the store has none.
    """

    def __init__(self, store: Store, key: str, size: int, etag: str) -> None:
        self.path = store.name(key)
        self.size = size
        self.id = FileId(self.path, size, 0, 0, 0, etag or NO_ETAG)
        self._store = store
        self._key = key
        self._etag = etag
        self._first = pool().submit(self._get, 0, min(size, _HEAD_BYTES))

    def __getitem__(self, wanted: slice) -> _Raw:
        """The bytes of a slice without step."""
        start, stop, _ = wanted.indices(self.size)
        first = self._first.result()
        return first[start:stop] if stop <= first.size else self.part(start, stop)

    def bytes(self) -> RemoteFile:
        """What is sliced as the array of a `MappedFile` is; every slice is a read of its own."""
        return self

    def part(self, start: int, stop: int) -> _Raw:
        """Bytes `start` to `stop`, by parallel requests where they are many.

        Raises:
            CheckpointError: they cannot be read, or the object is another than it was.
        """
        if stop - start <= PIECE_BYTES:
            return pool().submit(self._get, start, stop).result()
        result = np.empty(stop - start, np.uint8)

        def fill(at: int) -> None:
            end = min(at + PIECE_BYTES, stop)
            result[at - start : end - start] = self._get(at, end)

        list(pool().map(fill, range(start, stop, PIECE_BYTES)))
        result.flags.writeable = False
        return result

    def reader(self, begin: int, end: int) -> Callable[[int, int], _Raw]:
        """A function of `start` and `stop`, counted from `begin`, that gives bytes before `end`.

        Who reads on where the last read ended finds what follows on its way.
        """
        pieces: dict[int, Future[_Raw]] = {}
        last = -1

        def read(start: int, stop: int) -> _Raw:
            nonlocal last
            start, stop = begin + start, min(begin + stop, end)
            goes_on, last = start == last, stop
            if not goes_on or start >= stop:
                return self.part(start, max(start, stop))
            first, n = start // PIECE_BYTES, (stop - 1) // PIECE_BYTES + 1
            for gone in [i for i in pieces if i < first]:
                del pieces[gone]
            for i in range(first, min(n + _READ_AHEAD, -(-end // PIECE_BYTES))):
                if i not in pieces:
                    span = i * PIECE_BYTES, min((i + 1) * PIECE_BYTES, self.size)
                    pieces[i] = pool().submit(self._get, *span)
            wanted = range(first, n)
            starts = [i * PIECE_BYTES for i in wanted]
            return _joined(starts, [pieces[i] for i in wanted], start, stop)

        return read

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[Callable[[], _Raw]]:
        """Ask for `ranges` now, neighbours in one request; a function that waits for each."""
        pieces = [
            (at, min(at + PIECE_BYTES, stop))
            for start, stop in _merged(ranges)
            for at in range(start, stop, PIECE_BYTES)
        ]
        starts = [start for start, _ in pieces]
        futures = [pool().submit(self._get, *piece) for piece in pieces]
        return [functools.partial(_joined, starts, futures, *one) for one in ranges]

    def _get(self, start: int, stop: int) -> _Raw:
        if start >= stop:
            return np.zeros(0, np.uint8)
        return self._store.asked(self._key, functools.partial(self._once, start, stop))

    def _once(self, start: int, stop: int) -> _Raw:
        obstore = require("obstore")
        options: dict[str, Any] = {"range": (start, stop)}
        if self._etag and self._store.lists:  # web servers need not know conditions
            options["if_match"] = f'"{self._etag}"'
        found = obstore.get(self._store.handle, self._key, options=options)
        other = self._etag and self._store.versions and _etag(found.meta) != self._etag
        if other or found.meta["size"] != self.size:
            raise CheckpointError(_changed(self.path))
        data = np.frombuffer(found.bytes(), np.uint8)
        if data.size != stop - start:
            raise OSError(f"{data.size} bytes came, {stop - start} were asked for")
        return data


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads in which requests of this process wait for their answers."""
    return ThreadPoolExecutor(_PARALLEL, thread_name_prefix="stockpot-store")


def said(error: BaseException) -> str:
    """What a library says of a failure, in one line, without what may be a secret in an address."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    text = re.sub(r"\?[^\s\"')]*", "", re.sub(r"//[^/\s@]*@", "//", text))
    return text[:300]


def _etag(meta: Any) -> str:
    found = meta["e_tag"]
    # Azure lists them without the quotes that stand in its other answers.
    return "" if found is None else str(found).strip('"')


def _changed(name: str) -> str:
    return (
        f"{name} changed while it was read: what was made of it would be of two versions, and is "
        "not kept; run it again when nothing writes to it"
    )


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`ranges` in order, those with little between them as one.

    >>> _merged([(100, 200), (0, 50), (10**6, 10**6 + 5)])
    [(0, 200), (1000000, 1000005)]
    """
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(one for one in ranges if one[0] < one[1]):
        if spans and start <= spans[-1][1] + _GAP_BYTES:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return spans


def _joined(starts: list[int], futures: list[Future[_Raw]], start: int, stop: int) -> _Raw:
    """The bytes from `start` to `stop` of the pieces that begin at `starts`."""
    if start >= stop:
        return np.zeros(0, np.uint8)
    first, last = bisect_right(starts, start) - 1, bisect_left(starts, stop)
    held = [future.result() for future in futures[first:last]]
    whole = held[0] if len(held) == 1 else np.concatenate(held)
    return whole[start - starts[first] : stop - starts[first]]
