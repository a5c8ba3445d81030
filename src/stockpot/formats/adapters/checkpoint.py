"""An adapter with its base, seen as the checkpoint that merging the two would give."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot._types import StrPath
from stockpot.errors import MismatchError, NonFiniteError, Problem
from stockpot.formats.adapters import kohya
from stockpot.formats.adapters.layout import Factors, Layout
from stockpot.formats.adapters.reading import read_layout
from stockpot.formats.adapters.update import (
    F64,
    Part,
    Raw,
    Rows,
    Update,
    WeightSum,
    values_of,
)
from stockpot.formats.base import Checkpoint
from stockpot.formats.names import RenamedCheckpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.io.objects import RemoteFile
from stockpot.tensors.blas import one_thread
from stockpot.tensors.spec import TensorSpec

_KEPT_SUMS = 4


class OnBase(Checkpoint):
    """A checkpoint that differs from its base in some tensors, which are computed; it is abstract.

    Attributes:
        base: the checkpoint that it changes.
        changed: names of the tensors that are not the base's own.
    """

    base: Checkpoint
    changed: frozenset[str]

    @abstractmethod
    def _make_sum(self, name: str) -> WeightSum:
        """How a changed tensor is made."""

    def _sum(self, name: str) -> WeightSum:
        # Kept between the parts of a tensor that follow each other; two threads may both make it.
        kept: dict[str, WeightSum] = self.__dict__.setdefault("_sums", {})
        found = kept.get(name)
        if found is None:
            found = self._make_sum(name)
            while len(kept) >= _KEPT_SUMS:
                kept.pop(next(iter(kept)), None)
            kept[name] = found
        return found

    def scattered(self, name: str) -> bool:
        """Whether it is computed, part by part; as in the base otherwise."""
        return name in self.changed or self.base.scattered(name)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in the base, of what is not changed."""
        return None if name in self.changed else self.base.in_store(name)

    def part(self, name: str, start: int, stop: int) -> Raw:
        """Bytes `start` to `stop` of a tensor: whole blocks of rows are computed."""
        if name not in self.changed:
            return self.base.part(name, start, stop)
        made = np.empty(stop - start, np.uint8)
        self.write_into(name, made, start)
        made.flags.writeable = False
        return made

    def raw(self, name: str) -> Raw:
        """The bytes of tensor `name`; computed now where it is changed."""
        if name not in self.changed:
            self[name]
            return self.base.raw(name)
        return self.part(name, 0, self[name].nbytes)

    def writes(self, name: str) -> bool:
        """Whether it is changed."""
        return name in self.changed

    def write_into(self, name: str, out: npt.NDArray[np.uint8], start: int = 0) -> None:
        """Compute bytes of a changed tensor, from `start` on, right into `out`.

        Raises:
            NonFiniteError: what comes out is no number, or does not fit the type.
        """
        with one_thread():
            fits = self._sum(name).into(out, start, start + out.size)
        if not fits:
            raise NonFiniteError(
                f"{self.path}: tensor {name} with its update does not fit {self[name].dtype.value};"
                " choose a wider output dtype, such as bf16 or f32",
                path=self.path,
                tensor=name,
            )

    def matrix(self, name: str) -> F64:
        """A changed tensor as a matrix (rows, columns) in float64, not rounded."""
        with one_thread():
            made = self._sum(name)
            return made.block(0, made.rows)

    def owner(self, name: str) -> Checkpoint:
        """The base, for what is not changed."""
        return self if name in self.changed else self.base


class Adapter(OnBase):
    """A base and a low-rank adapter of it: W₀ + s·B·A for every tensor, computed when it is read.

    What is in memory is one block of one tensor. Factors are never averaged: a mixture of adapters
    is one of what they do (`stockpot.average` writes it as one adapter again).

    Args:
        base: the model that the adapter was trained on, open or by its path.
        adapter: what PEFT or kohya's scripts wrote, open or by its path.

    Attributes:
        source: the adapter as stored.
        given_base: the base as it was given; `base` may see it under other names.
        layout: what it holds.
        updates: tensor of the model → the low-rank update of it.
        whole: tensor of the model → what takes its place: heads, biases.

    Raises:
        CheckpointFormatError: it is of a kind that is no low-rank update, or damaged.
        MismatchError: names or shapes show that it belongs to another base.

    >>> import numpy as np
    >>> from stockpot import from_state_dict
    >>> base = from_state_dict({"q.weight": np.zeros((2, 2), np.float32)})
    >>> factors = {"q.lora_down.weight": np.float32([[1, 2]]), "q.lora_up.weight": np.eye(2, 1)}
    >>> Adapter(base, from_state_dict(factors)).read("q.weight")
    tensor([[1., 2.],
            [0., 0.]])

    Reference: Hu et al. 2022, arXiv 2106.09685, eq. 3.
    """

    def __init__(self, base: Checkpoint | StrPath, adapter: Checkpoint | StrPath) -> None:
        if isinstance(base, str | os.PathLike):
            base = open_checkpoint(base)
        if isinstance(adapter, str | os.PathLike):
            adapter = open_checkpoint(adapter)
        self.source, self.layout, self.given_base = adapter, read_layout(adapter), base
        bound = _Binding(base, adapter, self.layout)
        self.base = bound.base
        self.updates: Mapping[str, Update] = bound.updates
        self.whole: Mapping[str, str] = bound.whole
        self.rows = bound.rows
        self.changed = frozenset(self.updates) | frozenset(self.whole) | frozenset(self.rows)
        self.format = f"{adapter.format} ({self.layout.style} adapter)"
        super().__init__(
            adapter.path,
            bound.specs,
            metadata=bound.base.metadata,
            tied=tuple(
                group
                for group in self.base.tied
                if not self.changed.intersection(group)
                and all(name in bound.specs for name in group)
            ),
            notes=(*bound.notes, *adapter.notes),
            files=(*adapter.files, *self.base.files),
        )
        self.mirror = adapter.mirror

    @property
    def origin(self) -> Checkpoint:
        """The adapter as stored: what its path leads to."""
        return self.source

    @property
    def fingerprint(self) -> str:
        """That of the adapter as stored; `key` takes in the base."""
        return self.source.fingerprint

    @property
    def key(self) -> str:
        """A hash of the adapter and its base."""
        both = f"{self.source.fingerprint} on {self.base.fingerprint}"
        return xxhash.xxh3_128_hexdigest(both.encode())

    @property
    def is_dora(self) -> bool:
        """Whether its updates have magnitudes, so that no sum of factors gives their mean."""
        return any(one.factors.magnitude is not None for one in self.updates.values())

    def part_of(self, name: str, coefficient: float, *, with_factors: bool = True) -> Part:
        """Its term in a sum of tensors `name`."""
        update = self.updates.get(name)
        start = None
        if name in self.whole:
            start = Rows(self.source, self.whole[name])
            values_of(self.source, self.whole[name])
        elif name in self.rows:
            start = Rows(self.base, name, self._put_rows(name))
        if update is None:
            return Part(coefficient, start)
        left, right = update.product() if with_factors else (None, None)
        return Part(coefficient, start, left, right, update.magnitude, update.is_flipped)

    def _put_rows(self, name: str):  # type: ignore[no-untyped-def]
        stored, positions = self.rows[name]
        values = values_of(self.source, stored)

        def change(first: int, last: int, block: F64) -> None:
            for value, at in zip(values, positions, strict=True):
                if first <= at < last:
                    block[at - first] = value

        return change

    def _make_sum(self, name: str) -> WeightSum:
        part = self.part_of(name, 1.0)
        reader = Rows(self.base, name) if name in self.base else part.start
        assert reader is not None
        if part.is_linear and part.left is not None and part.right is not None:
            return WeightSum(self[name], reader, 1.0, (part.left, part.right))
        return WeightSum(self[name], reader, 0.0, None, [part])


class _Binding:
    """The tensors of a base that an adapter changes; made once, to be taken apart.

    Raises:
        MismatchError: names or shapes do not fit; all problems are listed.
    """

    def __init__(self, base: Checkpoint, adapter: Checkpoint, layout: Layout) -> None:
        self.problems: list[Problem] = []
        self.notes: tuple[str, ...] = ()
        self._path = adapter.path
        names = self._names(base, layout)
        if self.problems:
            raise self._error(base)
        strip, before = self._prefixes
        self.base = _under(base, strip)
        tensors = {module: strip + found for module, found in names.items()}
        transposed = self._transposed(adapter, layout, tensors)
        self.updates = {
            tensors[one.module]: Update(
                adapter, one, self._is_flipped(adapter, one, tensors[one.module], transposed)
            )
            for one in layout.factors
        }
        place = {name: before + name if before + name in self.base else name for name in
                 (*layout.whole, *layout.rows)}  # fmt: skip
        self.whole = {place[name]: stored for name, stored in layout.whole.items()}
        self.rows = {place[name]: found for name, found in layout.rows.items()}
        self._check_rows(adapter)
        self._drop_copies(adapter)
        self.specs = self._specs(adapter)
        if self.problems:
            raise self._error(base)

    def _error(self, base: Checkpoint) -> MismatchError:
        shown = [f"  {p.tensor}: {p.found}, expected {p.expected}" for p in self.problems[:5]]
        more = [f"  … and {len(self.problems) - 5} more"] if self.problems[5:] else []
        return MismatchError(
            "\n".join(
                [
                    f"the adapter {self._path} does not fit the base {base.path}: "
                    f"{len(self.problems)} tensors differ",
                    *shown,
                    *more,
                    "Give the base that it was trained on: base=… (--base).",
                ]
            ),
            self.problems,
        )

    def _names(self, base: Checkpoint, layout: Layout) -> dict[str, str]:
        """Module of the adapter → name of the tensor in the base that it updates.

        Of `_prefixes`, the first has to stand before all names of the base for them to be those of
        the adapter (an encoder whose adapter was trained under a head), the second before those of
        the adapter.
        """
        self._prefixes = ("", "")
        modules = [one.module for one in layout.factors]
        if layout.style != "peft":
            spelled = kohya.spelled(base)
            found = {m: kohya.tensor_of(m, spelled) for m in modules}
        else:
            found = {m: f"{m}.weight" if f"{m}.weight" in base else None for m in modules}
            if modules and not any(found.values()):
                found = self._shifted(base, modules)
        for module, name in found.items():
            if name is None:
                expected = "a weight of the base"
                self.problems.append(Problem(self._path, module, "not in the base", expected))
        return {module: name for module, name in found.items() if name is not None}

    def _shifted(self, base: Checkpoint, modules: list[str]) -> dict[str, str | None]:
        parts = modules[0].split(".")
        for n in range(1, len(parts)):
            prefix = ".".join(parts[:n]) + "."
            short = {m: f"{m.removeprefix(prefix)}.weight" for m in modules}
            if all(m.startswith(prefix) and short[m] in base for m in modules):
                self._prefixes = (prefix, "")
                return dict(short)
        first = f".{modules[0]}.weight"
        for name in base:
            prefix = name[: len(name) - len(first) + 1]
            if name.endswith(first) and all(f"{prefix}{m}.weight" in base for m in modules):
                self._prefixes = ("", prefix)
                return {m: f"{prefix}{m}.weight" for m in modules}
        return dict.fromkeys(modules)

    def _transposed(self, adapter: Checkpoint, layout: Layout, tensors: Mapping[str, str]) -> bool:
        """Whether square matrices are stored as (in, out): as those are that tell, else as said."""
        told = set()
        for one in layout.factors:
            shape = self.base[tensors[one.module]].shape
            out, inner = adapter[one.up].shape[0], adapter[one.down].shape[1:]
            if not one.is_embedding and len(shape) == len(inner) + 1 == 2 and out != inner[0]:
                told.add(shape == (inner[0], out))
        self._is_ambiguous = len(told) == 2 or (layout.is_transposed and told == {False})
        return told == {True} or (layout.is_transposed and told != {False})

    def _is_flipped(self, adapter: Checkpoint, one: Factors, name: str, transposed: bool) -> bool:
        shape = self.base[name].shape
        out, inner = adapter[one.up].shape[0], tuple(adapter[one.down].shape[1:])
        straight, flipped = (out, *inner), (*inner, out)
        # Kernels of size 1 are left out by some writers.
        fits = shape == straight or (len(inner) == 1 and shape[:2] == straight)
        fits = fits and shape[2:].count(1) == len(shape[2:]) if len(inner) == 1 else fits
        if one.is_embedding or (transposed and len(inner) == 1 and flipped == shape):
            fits = shape == flipped
            found = True
        else:
            found = not fits and len(inner) == 1 and shape == flipped
            fits = fits or found
        if not fits:
            is_, expected = f"an update of {straight}", f"one of {shape}"
            if len(inner) > 1 and shape[0] == out and shape[2:] == inner[1:]:
                expected += " (convolutions of several groups are not averaged)"
            self.problems.append(Problem(self._path, name, is_, expected))
        elif self._is_ambiguous and len(inner) == 1 and out == inner[0] and not one.is_embedding:
            expected = "layers that are all stored as (out, in), or all as (in, out)"
            self.problems.append(Problem(self._path, name, f"a square {shape}", expected))
        if not self.base[name].dtype.mixable:
            kind = f"{self.base[name].dtype.value} in the base"
            self.problems.append(Problem(self._path, name, kind, "plain weights: dequantise it"))
        return found

    def _drop_copies(self, adapter: Checkpoint) -> None:
        """Leave out the tables that PEFT saves beside their updates where they are the base's."""
        for name in [name for name in self.whole if name in self.updates]:
            given = adapter[self.whole[name]]
            if given.dtype.mixable and given.shape == self.base[name].shape:
                stored, own = values_of(adapter, given.name), values_of(self.base, name)
                if np.array_equal(stored, own):
                    del self.whole[name]

    def _check_rows(self, adapter: Checkpoint) -> None:
        for name, (stored, positions) in self.rows.items():
            spec, given = self.base.get(name), adapter[stored]
            fits = spec is not None and (len(positions), *spec.shape[1:]) == given.shape
            if spec is None or not fits or any(at >= spec.shape[0] for at in positions):
                found = (
                    "not in the base" if spec is None else f"{len(positions)} rows {given.shape}"
                )
                expected = "a table" if spec is None else f"rows of {spec.shape}"
                self.problems.append(Problem(self._path, name, found, expected))

    def _specs(self, adapter: Checkpoint) -> dict[str, TensorSpec]:
        specs = dict(self.base)
        for name, stored in self.whole.items():
            known, given = self.base.get(name), adapter[stored]
            if known is not None and known.shape != given.shape:
                self.problems.append(Problem(self._path, name, str(given.shape), str(known.shape)))
            elif not given.dtype.mixable:
                self.problems.append(Problem(self._path, name, given.dtype.value, "a float type"))
            specs.setdefault(name, replace(given, name=name))
        return self._without_other_heads(specs)

    def _without_other_heads(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        """A head that the adapter brings takes the place of the one that the base has."""
        new = [name for name in specs if name not in self.base]
        bodies = {name.partition(".")[0] for name in self.updates}
        if not new or len(bodies) != 1 or any(name.partition(".")[0] in bodies for name in new):
            return specs
        dropped = [
            name
            for name in specs
            if name not in self.whole and name.partition(".")[0] not in bodies
        ]
        if dropped:
            self.notes = (
                f"left out, since the adapter brings a head of its own: {', '.join(dropped[:5])}",
            )
        return {name: spec for name, spec in specs.items() if name not in set(dropped)}


def _under(base: Checkpoint, prefix: str) -> Checkpoint:
    """`base` with a prefix before all names; the same object each time it is asked for."""
    if not prefix:
        return base
    views: dict[str, Checkpoint] = base.__dict__.setdefault("_under", {})
    if prefix not in views:
        note = f"the prefix {prefix!r} was put before its names, as the adapters have it"
        views[prefix] = RenamedCheckpoint(base, {n: prefix + n for n in base}, notes=(note,))
    return views[prefix]
