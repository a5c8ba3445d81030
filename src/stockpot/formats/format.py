"""What a format is: recognising, reading and writing it, in one class, and how the docs say it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.output import OutputPlan, OutputRequest

HEAD_BYTES = 512
"""How much of a file's beginning a format sees to recognise it."""


class Format(ABC):
    """One way in which weights lie on a disk.

    A new one is a subclass and a line in `FORMATS`, or `stockpot.formats.register` for that of
    another package. Only `name`, `recognises` and `open` have to be there; a format that is read
    and not written leaves `plan` alone. `stockpot.testing.reader_conformance` checks a reader.

    Attributes:
        name: as in `Checkpoint.format`.
        summary: what it is, for the table in the documentation.
        suffixes: how names of its files end, with the dot, in lower case.
        is_folder: whether it is a folder, not a file.
        in_folders: names that model folders give to the one file with the weights, best first.
        writes: whether `plan` is there.
        kept_in_folders: whether the library that reads such a folder reads no other format in it,
            so that an output like the folder has it too, and not safetensors.
        side_files: what goes with the weights into an output, for the documentation.
        remedy: what to do about what is not read or not written.
    """

    name: str
    summary: str = ""
    suffixes: tuple[str, ...] = ()
    is_folder: bool = False
    in_folders: tuple[str, ...] = ()
    reads: bool = True
    writes: bool = False
    kept_in_folders: bool = False
    side_files: str = ""
    remedy: str = ""

    @abstractmethod
    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether what is at `path` is of this format, by `head`, its first bytes, and its name.

        Content that is unmistakable counts more than a suffix. For a folder, `head` is empty.
        """

    @abstractmethod
    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The checkpoint at `path`, headers read and names as stored.

        Args:
            path: exists, and is a regular file or, if `is_folder`, a folder.
            key: which section of it holds the tensors, where a format has such.

        Raises:
            CheckpointFormatError: it is damaged, or not of this format.
        """

    def plan(self, request: OutputRequest) -> OutputPlan:
        """The files of an output of this format; nothing is written.

        Raises:
            CheckpointError: this format is not written, or cannot hold what is asked.
        """
        what = f"{self.summary or self.name} is {'read and ' if self.reads else ''}not written"
        raise CheckpointError(f"{request.path}: {what}; {self.remedy}")


class Unreadable(Format):
    """A format that is recognised only so that the way to convert it can be said.

    Args:
        name: of the format.
        summary: what a file of it is, as a noun with its article.
        remedy: how to convert it.
        suffixes: how its files end; they decide where `magic` is empty.
        magic: what its files begin with.
        members: patterns of files in a folder of it, if it has such; one that matches is enough.
    """

    reads = False

    def __init__(
        self,
        name: str,
        summary: str,
        remedy: str,
        *,
        suffixes: tuple[str, ...] = (),
        magic: bytes = b"",
        members: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.remedy = remedy
        self.suffixes = suffixes
        self.magic = magic
        self.members = members
        self.is_folder = bool(members)

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its first bytes, or by its suffix or what lies in it where those show nothing."""
        if self.is_folder and path.is_dir():
            return any(next(path.glob(pattern), None) is not None for pattern in self.members)
        if self.magic:
            return head.startswith(self.magic)
        return path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """Always raises CheckpointFormatError, with the way to convert it."""
        raise CheckpointFormatError(f"{path} is {self.summary}, which is not read: {self.remedy}")


def first_of(formats: Iterable[Format], file: Path) -> Format | None:
    """The first of `formats` that recognises the regular file `file`; None for none of them."""
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    return next((one for one in formats if not one.is_folder and one.recognises(file, head)), None)
