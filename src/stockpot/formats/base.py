"""The one interface through which everything reads weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.errors import MismatchError, Problem, TensorNotFoundError
from stockpot.formats.fingerprint import fingerprint
from stockpot.formats.toolkits import Surroundings
from stockpot.io.objects import RemoteFile
from stockpot.io.storage import FileId, Folder, ScratchFolder
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    import torch


class Checkpoint(Mapping[str, TensorSpec], ABC):
    """Specs by name, and values on request.

    Opening reads headers only, and so does `checkpoint["w"]`, which is a `TensorSpec`; the disk is
    touched by `read("w")` and `raw("w")`. A reader of another format implements `raw` and hands its
    specs to `__init__`: see `stockpot.testing` for the suite that it has to pass.

    Attributes:
        path: where it was opened, as given; `"<memory>"` for a state dict.
        format: name of the format, such as `"safetensors"`, `"torch-sharded"` or `"memory"`.
        metadata: text that the file carries beside the tensors.
        tied: groups of names that are one tensor (shared storage); each group sorted, len ≥ 2.
            Every name of a group is in the mapping and reads the same values.
        notes: what a person should know of how it was read (a prefix removed, a section chosen,
            classes that became placeholders), one sentence each.
        files: the files it was read from, as they were then; none for a state dict.
        section: which part of the files this is, and how it is seen (`"state_dict"` of a torch
            file); empty for all of them as they are.
        mirror: the folder of this machine that holds the side files of a folder in a store; it goes
            when nothing holds it any longer.
        computed: whether `raw` makes values in memory of its own; whoever streams has to allow for
            a whole tensor then.
    """

    format: str = "unknown"
    computed: bool = False

    def __init__(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        *,
        metadata: Mapping[str, str] | None = None,
        tied: tuple[tuple[str, ...], ...] = (),
        notes: tuple[str, ...] = (),
        files: tuple[FileId, ...] = (),
        section: str = "",
    ) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.tied = tied
        self.notes = notes
        self.files = files
        self.section = section
        self.mirror: Folder | ScratchFolder | None = None
        self._fingerprint: str | None = None
        self._specs = dict(specs)

    def __getitem__(self, name: str) -> TensorSpec:
        try:
            return self._specs[name]
        except KeyError:
            raise TensorNotFoundError(name, self.path) from None

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    # A checkpoint is compared and hashed by identity: equality of content is its fingerprint's job.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}: {len(self)} tensors>"

    @abstractmethod
    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`: one dimension, row-major, little-endian, read-only.

        Mapped from the file where the format allows it, so that a slice touches only its own pages.

        Raises:
            TensorNotFoundError: no such tensor.
        """

    def scattered(self, name: str) -> bool:
        """Whether the values of `name` lie apart in the file, so that `raw` copies all of them."""
        return False

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of `raw(name)`, in memory for these alone if it is scattered."""
        return self.raw(name)[start:stop]

    def writes(self, name: str) -> bool:
        """Whether the values of `name` are computed right into the memory that they are to be in.

        `write_into` does that, and finds what is not finite.
        """
        return False

    def write_into(self, name: str, out: npt.NDArray[np.uint8], start: int = 0) -> None:
        """Put bytes of tensor `name`, from `start` on, into `out`."""
        out[:] = self.part(name, start, start + out.size)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """The object that holds the bytes of `name` as `raw` has them, and where they begin.

        None where they are on this machine, or are computed. Whoever knows what comes next asks the
        object for many ranges at once.
        """
        return None

    @property
    def folder(self) -> str:
        """Where the side files of a folder are on this machine: `path`, unless that is a store."""
        return self.path if self.mirror is None else self.mirror.name

    def reader(self, name: str) -> Callable[[int, int], npt.NDArray[np.uint8]]:
        """A function of `start` and `stop` that gives these bytes of tensor `name`.

        For reading a tensor in pieces: one that is computed is computed once, one that is scattered
        is gathered piece by piece.
        """
        stored = self.in_store(name)
        if stored is not None:
            file, at = stored
            return file.reader(at, at + self[name].nbytes)
        if self.scattered(name):
            return lambda start, stop: self.part(name, start, min(stop, self[name].nbytes))
        raw = self.raw(name)
        return lambda start, stop: raw[start:stop]

    def pieces(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[npt.NDArray[np.uint8]]:
        """Bytes of tensors, in the order in which they are asked for.

        Of a store, 64 pieces are asked for at once: a look here and there at a model should not
        wait for one answer after the other.

        Args:
            wanted: name, first byte, and the byte after the last, or any after the tensor's end.
        """
        remaining, last = iter(wanted), None
        while group := list(islice(remaining, 64)):
            asked: dict[RemoteFile, list[tuple[int, int, int]]] = {}
            for i, (name, start, stop) in enumerate(group):
                if (stored := self.in_store(name)) is not None:
                    file, at = stored
                    end = at + min(stop, self[name].nbytes)
                    asked.setdefault(file, []).append((i, at + start, end))
            waits: dict[int, Callable[[], npt.NDArray[np.uint8]]] = {}
            for file, places in asked.items():
                spans = file.fetch([(start, stop) for _, start, stop in places])
                waits |= zip((i for i, *_ in places), spans, strict=True)
            for i, (name, start, stop) in enumerate(group):
                if i in waits:
                    yield waits[i]()
                    continue
                if name != last:  # what is computed is computed once for all its pieces
                    read, last = self.reader(name), name
                yield read(start, stop)

    def surroundings(self) -> Surroundings | None:
        """What lies around the weights in a toolkit's file, to be written back, if anything."""
        return None

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor holding the values of `name`, in the stored dtype and shape."""
        from stockpot.tensors._torch import tensor_from_raw

        return tensor_from_raw(self[name], self.raw(name))

    @cached_property
    def leaders(self) -> Mapping[str, str]:
        """Every name in `tied` → the first name of its group; names that stand alone are absent."""
        return leaders_of(self.tied)

    @property
    def distinct(self) -> tuple[str, ...]:
        """The names in order, of each tied group only the first: every tensor once."""
        return tuple(name for name in self if self.leaders.get(name, name) == name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors by name, read into memory, for `module.load_state_dict`.

        Tied names hold the same tensor, as in the state dict of a module that ties them.
        """
        tensors = {name: self.read(name) for name in self.distinct}
        return {name: tensors[self.leaders.get(name, name)] for name in self}

    def load_into(
        self, model: torch.nn.Module, *, strict: bool = True, unchanged: Collection[str] = ()
    ) -> None:
        """Copy the values into `model`, tensor by tensor; its dtypes and devices stay.

        Unlike `load_state_dict`, nothing is copied unless everything fits. A name that is absent
        here but tied in the model to one that is present counts as present.

        Args:
            model: gets the values; its parameters and buffers keep their identity.
            strict: refuse names that only one of the two has. Shapes must always agree.
            unchanged: names whose values are in the model already.

        Raises:
            MismatchError: names or shapes differ; `problems` lists every one.
        """
        import torch

        own = {
            name: value
            for name, value in model.state_dict(keep_vars=True).items()
            if isinstance(value, torch.Tensor)
        }
        problems = self._misfits(own, strict=strict)
        if problems:
            lines = [f"  {p.tensor}: {p.found}, expected {p.expected}" for p in problems[:20]]
            lines += [f"  … and {len(problems) - 20} more"] if problems[20:] else []
            head = (
                f"{self.path} does not fit {type(model).__name__}: {len(problems)} tensors differ"
            )
            advice = (
                "Load it into the architecture that was saved (a task's build() makes it), or "
                "choose the right part of the file with key=… (--key)."
            )
            raise MismatchError("\n".join([f"{head}:", *lines, advice]), problems)
        wanted = {name: own[name] for name in self if name in own and name not in unchanged}
        filled = self.fill_all(wanted)
        with torch.no_grad():
            for name, target in wanted.items():
                if name not in filled:
                    target.copy_(self.read(name))

    @property
    def origin(self) -> Checkpoint:
        """The checkpoint that `path` leads to: this one, unless it is another view of it."""
        return self

    @property
    def key(self) -> str:
        """What identifies its values: equal keys, equal weights."""
        return self.fingerprint

    def owner(self, name: str) -> Checkpoint:
        """The checkpoint that tensor `name` is the very tensor of, as far as that is known."""
        self[name]
        return self

    def fill(self, name: str, target: torch.Tensor) -> bool:
        """Whether the values of tensor `name` could be made right in the memory of `target`.

        Only a mixture can, which so holds no second copy; otherwise nothing is done.
        """
        return False

    def fill_all(self, targets: Mapping[str, torch.Tensor]) -> set[str]:
        """`fill` each of `targets`, by name; those that it could."""
        return {name for name, target in targets.items() if self.fill(name, target)}

    def _misfits(self, own: Mapping[str, torch.Tensor], *, strict: bool) -> list[Problem]:
        """Why these tensors do not fit a model with the tensors `own`."""
        problems = [
            Problem(self.path, name, str(self[name].shape), str(tuple(value.shape)))
            for name, value in own.items()
            if name in self and self[name].shape != tuple(value.shape)
        ]
        if not strict:
            return problems
        present = {_place(own[name]) for name in self if name in own}
        missing = [
            Problem(self.path, name, "missing", "a tensor")
            for name, value in own.items()
            if name not in self and (value.numel() == 0 or _place(value) not in present)
        ]
        others = [
            Problem(self.path, n, "a tensor", "not in the model") for n in self if n not in own
        ]
        return [*missing, *others, *problems]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        return sum(self._specs[name].nbytes for name in self.distinct)

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors, tied ones once."""
        return sum(self._specs[name].numel for name in self.distinct)

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of names, dtypes, shapes and values, as 32 hex digits.

        Made on first use, from one pass over the file, and cached on disk while the file does not
        change. Independent of the order of tensors, of shards and of the container format.
        """
        if not self.files:  # values in memory may change
            return fingerprint(self)
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self)
        return self._fingerprint


class View(Checkpoint):
    """Another checkpoint with other names or values, in its name: same path, files and metadata.

    Attributes:
        source: the other.
    """

    def __init__(
        self,
        source: Checkpoint,
        specs: Mapping[str, TensorSpec],
        *,
        tied: tuple[tuple[str, ...], ...],
        notes: tuple[str, ...],
        section: str | None = None,
    ) -> None:
        super().__init__(
            source.path,
            specs,
            metadata=source.metadata,
            tied=tied,
            notes=notes,
            files=source.files,
            section=source.section if section is None else section,
        )
        self.source = source
        self.format = source.format
        self.mirror = source.mirror

    def surroundings(self) -> Surroundings | None:
        """Those of the source."""
        return self.source.surroundings()


def stored(checkpoint: Checkpoint) -> Checkpoint:
    """What `checkpoint` is a view of, views of views followed."""
    while isinstance(checkpoint, View):
        checkpoint = checkpoint.source
    return checkpoint


def leaders_of(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Every name in `groups` of tied names → the first name of its group."""
    return {name: group[0] for group in groups for name in group}


def tied_everywhere(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[str, ...], ...]:
    """Names that are one tensor in each of `checkpoints`: the coarsest common refinement."""
    groups: dict[tuple[object, ...], list[str]] = {}
    leaders = [checkpoint.leaders for checkpoint in checkpoints]
    for name in leaders[0]:
        if all(name in leader for leader in leaders):
            groups.setdefault(tuple(leader[name] for leader in leaders), []).append(name)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))


def agreed_metadata(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """The metadata that all `checkpoints` carry with equal values.

    Sizes are left out: they describe the old files.
    """
    first, *others = [checkpoint.metadata for checkpoint in checkpoints]
    return {
        key: value
        for key, value in first.items()
        if key not in ("total_size", "total_parameters")
        and all(other.get(key) == value for other in others)
    }


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where the values of `tensor` lie: tied tensors lie in one place."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
