"""Folders of long work: whose they are, and the small JSON files by which it is continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stockpot._records import parse, read_json
from stockpot._types import JSON
from stockpot.errors import OutputExistsError, ReportError
from stockpot.io import atomic as _io


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder whose marker file holds what identifies the work in it.

    A call with the same identity continues; one with another is refused, or with `force` starts
    over, in which case only files that this kind of work writes are removed. Where nothing was made
    yet, there is nothing to lose, and another identity takes the place of the first.

    Attributes:
        path: the folder.
        marker: name of the marker file.
        kind: of the work, for messages, such as `"a sweep"`.
        owned: patterns of what the work writes besides the marker.
        made: patterns of what is worth keeping, finished or not; None for those of `owned`.
        force: how to start over, for messages; empty where that is not offered.
        other: how to choose another folder.
        alone: whether a folder that holds anything else is refused, even with `force`.
    """

    path: Path
    marker: str
    kind: str
    owned: tuple[str, ...] = ()
    made: tuple[str, ...] | None = None
    force: str = ""
    other: str = ""
    alone: bool = False

    def claim(self, identity: Mapping[str, JSON], *, force: bool = False) -> None:
        """Make the folder that of the work with this identity.

        Raises:
            OutputExistsError: it is that of another work of the kind, which has made something, and
                `force` is false; names all that differs.
        """
        wanted = _plain(identity)
        known = self.read(self.marker)
        if known is not None:
            differing = [k for k in wanted if _content(known.get(k)) != _content(wanted[k])]
            if not differing:
                return
            if not force and self._has_made_something():
                lines = [f"  {k}: {known.get(k)!r}, now {wanted[k]!r}" for k in differing]
                raise OutputExistsError(
                    str(self.path),
                    f"{self.path} holds {self.kind} with other settings:\n"
                    + "\n".join(lines)
                    + f"\n{self._ways_out()}",
                )
            self.clear()
        elif self.alone and self.path.exists() and self._holds_something():
            raise OutputExistsError(
                str(self.path),
                f"{self.path} holds something that is not {self.kind}, and is left alone, even "
                "with force: choose a new or an empty folder",
            )
        self.write(self.marker, wanted)

    def _has_made_something(self) -> bool:
        patterns = self.owned if self.made is None else self.made
        return any(True for pattern in patterns for _ in self.path.glob(pattern))

    def _ways_out(self) -> str:
        other = f" ({self.other})" if self.other else ""
        ways = ["Continue it with the same ones", f"choose another folder{other}"]
        ways += [f"start over with {self.force}"] if self.force else []
        return f"{', '.join(ways[:-1])}, or {ways[-1]}."

    def _holds_something(self) -> bool:
        return not self.path.is_dir() or any(self.path.iterdir())

    def clear(self) -> None:
        """Remove what the work has written, and nothing else."""
        for pattern in (*self.owned, self.marker):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`; None where there is no such file.

        Raises:
            ReportError: it is damaged.
        """
        path = self.path / name
        if not path.exists():
            return None
        return parse(dict[str, Any], read_json(path, error=ReportError), error=ReportError)

    def write(self, name: str, value: Mapping[str, JSON]) -> None:
        """Write a JSON object to the file `name`, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _io.write_json(path, dict(value))


def _plain(value: Mapping[str, JSON]) -> dict[str, Any]:
    """`value` as it reads after it was written: tuples as lists."""
    return cast("dict[str, Any]", json.loads(_io.dump_json(dict(value))))


def _content(value: Any) -> Any:
    """A checkpoint is identified by its fingerprint, wherever it lies now."""
    is_checkpoint = isinstance(value, dict) and "fingerprint" in value
    return value["fingerprint"] if is_checkpoint else value
