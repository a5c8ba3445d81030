"""Everything that was scored, on disk, so that nothing is scored twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stockpot._records import loads, parse
from stockpot._types import JSON, StrPath
from stockpot.errors import EvaluationError, StockpotError

_Array = npt.NDArray[np.generic]

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, fields TEXT NOT NULL, label TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS outputs (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, n INTEGER NOT NULL, dtype TEXT NOT NULL,
    width TEXT NOT NULL, positions BLOB NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS outputs_by_key ON outputs (key);
CREATE TABLE IF NOT EXISTS numbers (key TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps (key TEXT PRIMARY KEY, content TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Key:
    """What a result depends on; equal keys are the same forward passes.

    Attributes:
        model: content of the weights: a fingerprint or a mixture's key.
        split: fingerprint of the examples.
        metric: its name.
        version: of the task: hash of its source.
        batchnorm: how running statistics were made; empty when the model has none to make.
        precision: of the forward pass.
    """

    model: str
    split: str
    metric: str
    version: str
    batchnorm: str = ""
    precision: str = "fp32"

    @property
    def digest(self) -> str:
        """64 hex digits over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `Journal.entries`: what was scored, on how many examples, and when."""

    key: Key
    label: str
    n: int
    n_bytes: int
    created: float

    def to_json(self) -> dict[str, JSON]:
        """The key, and what is known of the entry."""
        about = {"label": self.label, "n": self.n, "bytes": self.n_bytes, "created": self.created}
        return {**asdict(self.key), **about}


def _outputs_of(
    dtype: object, width: object, positions: object, data: object
) -> tuple[npt.NDArray[np.int64], _Array]:
    """Positions (n,) and outputs (n, …) of one row.

    Raises:
        ValueError: they do not fit each other, or are no numbers.
    """
    if not (isinstance(dtype, str) and isinstance(width, str | bytes)):
        raise ValueError("a row has neither a type nor a width")
    if not (isinstance(positions, bytes) and isinstance(data, bytes)):
        raise ValueError("a row has no bytes")
    kind = np.dtype(dtype) if len(dtype) < 8 else None
    if kind is None or kind.kind not in "biufc":
        raise ValueError(f"outputs of type {dtype!r:.40}")
    shape = parse(tuple[int, ...], loads(width))
    if len(shape) > 32 or any(not 0 <= n < 2**31 for n in shape):
        raise ValueError(f"outputs of shape {shape!r:.40}")
    places = np.frombuffer(positions, "<i8").astype(np.int64)
    return places, np.frombuffer(data, kind).reshape(len(places), *shape)


class Journal:
    """Outputs by example under a content key, in one SQLite file.

    It has state, the open database, because results must survive a kill the moment they exist: each
    `append` is one transaction of a write-ahead log, which several processes may write at once. A
    renamed or moved checkpoint is found again, because keys are made of contents. `path=None` keeps
    everything in memory and forgets it.

    The file system must support locking; a folder on NFS may not.

    >>> import numpy as np
    >>> journal, key = Journal(None), Key("model", "split", "accuracy", "1")
    >>> journal.append(key, np.array([2, 0]), np.array([[0.5], [0.25]], np.float32))
    >>> journal.outputs(key)[0].tolist(), len(journal.entries())
    ([0, 2], 1)
    """

    def __init__(self, path: StrPath | None) -> None:
        self.path = None if path is None else Path(path)
        self._connection: sqlite3.Connection | None = None
        self._pid = -1

    def append(self, key: Key, indices: _Array, outputs: _Array, *, label: str = "") -> None:
        """Keep `outputs` (n, …) of the examples at `indices` (n,); later ones replace earlier ones.

        `label` is for people: usually the path of the checkpoint.
        """
        if len(indices) != len(outputs):
            raise ValueError(f"{len(indices)} indices for {len(outputs)} outputs")
        row = (
            key.digest, len(indices), outputs.dtype.str, json.dumps(list(outputs.shape[1:])),
            np.ascontiguousarray(indices, "<i8").tobytes(), np.ascontiguousarray(outputs).tobytes(),
        )  # fmt: skip
        with self._writing() as db:
            self._enter(db, key, label)
            db.execute(
                "INSERT INTO outputs (key, n, dtype, width, positions, data) VALUES (?,?,?,?,?,?)",
                row,
            )

    def outputs(self, key: Key) -> tuple[npt.NDArray[np.int64], _Array] | None:
        """Sorted indices (n,) and outputs (n, …) kept under `key`; None if there are none."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT dtype, width, positions, data FROM outputs WHERE key = ? ORDER BY id",
                (key.digest,),
            ).fetchall()
        if len(rows) == 0:
            return None
        with self._damage():
            parts = [_outputs_of(*row) for row in rows]
            positions = np.concatenate([one for one, _ in parts])
            values = np.concatenate([one for _, one in parts])
        # np.unique finds first occurrences: reversed, that is the latest of each example.
        unique, first = np.unique(positions[::-1], return_index=True)
        return unique.astype(np.int64), values[::-1][first]

    def write_numbers(self, key: Key, content: Mapping[str, float | str], *, label: str) -> None:
        """Keep named numbers, such as what an external program printed."""
        with self._writing() as db:
            self._enter(db, key, label)
            db.execute(
                "INSERT OR REPLACE INTO numbers VALUES (?, ?)",
                (key.digest, json.dumps(dict(content))),
            )

    def numbers(self, key: Key) -> dict[str, float | str] | None:
        """What `write_numbers` kept; None if nothing."""
        with self._reading() as db:
            row = db.execute("SELECT content FROM numbers WHERE key = ?", (key.digest,)).fetchone()
        if row is None:
            return None
        return self._named(row[0])

    def keep(self, key: str, values: Mapping[str, float | str]) -> None:
        """Keep what one step of a long computation found, exactly; it is no entry of its own.

        Args:
            key: a digest of everything that the step depends on.
            values: floats, among them such as are no numbers, and text.
        """
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?)", (key, json.dumps(dict(values)))
            )

    def kept(self, key: str) -> dict[str, float | str] | None:
        """What `keep` kept; None if nothing."""
        with self._reading() as db:
            row = db.execute("SELECT content FROM steps WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return self._named(row[0])

    def entries(self) -> list[Entry]:
        """Everything that was scored, oldest first."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT e.fields, e.label, COALESCE(SUM(o.n), 0),"
                " COALESCE(SUM(LENGTH(o.data) + LENGTH(o.positions)), 0), e.created"
                " FROM entries e LEFT JOIN outputs o ON o.key = e.key"
                " GROUP BY e.key ORDER BY e.created, e.key"
            ).fetchall()
        with self._damage():
            return [parse(Entry, Entry(parse(Key, loads(row[0])), *row[1:])) for row in rows]

    def clear(self, *, model: str | None = None) -> int:
        """Forget everything, or all results of one `model`; returns how many entries went."""
        with self._reading() as db:
            rows = db.execute("SELECT key, fields FROM entries").fetchall()
        with self._damage():
            gone = [k for k, t in rows if model is None or parse(Key, loads(t)).model == model]
        with self._writing() as db:
            for table in ("entries", "outputs", "numbers"):
                db.executemany(f"DELETE FROM {table} WHERE key = ?", [(k,) for k in gone])
            if model is None:
                db.execute("DELETE FROM steps")
        with self._reading() as db:
            db.execute("VACUUM")
        return len(gone)

    def close(self) -> None:
        """Close the database; it opens again when it is used."""
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _named(self, text: object) -> dict[str, float | str]:
        with self._damage():
            # Not `loads`: what is no number is a value here.
            found = json.loads(text) if isinstance(text, str) else text
            return parse(dict[str, float | str], found)

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """The database is a file like any other: what it holds need not be what was written."""
        try:
            yield
        except (StockpotError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise EvaluationError(
                f"the journal {self.path} is damaged ({error}); remove the file, or score without "
                "it (--no-journal)"
            ) from error

    def _enter(self, db: sqlite3.Connection, key: Key, label: str) -> None:
        db.execute(
            "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)",
            (key.digest, json.dumps(asdict(key), sort_keys=True), label, time.time()),
        )

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        # A connection must not cross a fork: the child opens its own and leaves its parent's alone.
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=60,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
        self._connection, self._pid = connection, os.getpid()
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        # A damaged file can make SQLite say so in what is no text.
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise EvaluationError(
                f"the journal {self.path} cannot be used ({error}); remove the file, or score "
                "without it (--no-journal)"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
