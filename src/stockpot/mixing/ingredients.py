"""Checkpoints side by side: aligned, checked, and put in the order in which they are summed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

from stockpot._types import StrPath
from stockpot.errors import (
    CheckpointError,
    CheckpointFormatError,
    Problem,
    RecipeError,
    UnsafeCheckpointError,
)
from stockpot.formats.adapters.binding import with_bases
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.base import Checkpoint, leaders_of, tied_everywhere
from stockpot.formats.fingerprint import head_digest
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import decode
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.runs import Runs, find_runs, without_repeats
from stockpot.formats.zeros import Zeros, count_zeros, is_table
from stockpot.io.paths import told_apart
from stockpot.mixing.alignment import Mismatch, compare, describe, same_form
from stockpot.mixing.dequantising import dequantised
from stockpot.mixing.reconcile import Reconcile, reconciled
from stockpot.mixing.vocabulary import one_vocabulary
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    import torch


Source: TypeAlias = "StrPath | Checkpoint | Mapping[str, Any] | torch.nn.Module"
OnMismatch: TypeAlias = Literal["error", "leave-out", "common"]

_HEAD_BYTES = 4096
_TABLES = frozenset({
    "inv_freq", "masked_bias", "attn_mask", "causal_mask", "cos_cached", "sin_cached", "cos", "sin",
    "pos_table", "relative_coords_table", "queue", "center", "weight_u", "weight_v",
})  # fmt: skip
"""Last parts of the names of float buffers that no optimiser moves, but for running statistics."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An ingredient that was left out, and every reason why."""

    path: str
    problems: tuple[Problem, ...]


class Ingredients(Sequence[Checkpoint]):
    """The checkpoints that may enter a soup, in the order given.

    Building it *is* the compatibility check: names, shapes and dtypes of all of them are compared,
    from their headers alone, and one `MismatchError` lists every problem of every ingredient. The
    yardstick is the base if there is one, else the largest group that agrees (the earliest of
    equals). Whether they share an initialisation, without which an average is worthless, is not
    checked here: see `stockpot.analysis`.

    Args:
        sources: paths, open checkpoints, state dicts or modules; a folder of runs stands for its
            runs, of which copies count once (see `find_runs`).
        base: the common initialisation, checked as the others are, but not among them.
        on_mismatch: `"error"`; `"leave-out"` the ingredients that do not fit; `"common"` averages
            the tensors that all hold with equal dtype and shape, and takes the others from the
            donor.
        key: the section of torch files that holds the tensors.
        reconcile: what to do about checkpoints that differ in form, and which tensors are mixed.
        donor: position of the ingredient from which tensors come that are not averaged; None means
            the base, else the first; with `"common"`, one of the usual layout, of equals of that
            with the most tensors, and the first of those in canonical order.

    Attributes:
        base: the open base, or None.
        adapter_base: what the adapters among them were trained on, as it was opened; None without
            any. It is `base` too, unless it lacks tensors that they bring.
        on_mismatch: as given.
        reconcile: as given.
        donor: where tensors that are not averaged come from.
        like: whose side files an output takes; the donor, or the one whose vocabulary it has.
        specs: what a mixture of the ingredients holds, by name.
        averaged: the names among `specs` that every ingredient holds, to be mixed.
        tied: groups of names that are one tensor in the donor and in all ingredients.
        left_out: the ingredients that were left out.
        notes: what a person should know, one sentence each.

    Raises:
        MismatchError: they cannot be averaged; `problems` says why.
        RecipeError: there are none.
        CheckpointError: one cannot be read.
    """

    def __init__(
        self,
        sources: Iterable[Source] | Runs,
        *,
        base: Source | None = None,
        on_mismatch: OnMismatch = "error",
        key: str | None = None,
        reconcile: Reconcile | None = None,
        donor: int | None = None,
    ) -> None:
        if on_mismatch not in get_args(OnMismatch):
            raise RecipeError(
                f"on_mismatch is {on_mismatch!r}; expected one of {', '.join(get_args(OnMismatch))}"
            )
        self.on_mismatch = on_mismatch
        given, said = _open_all(sources, key)
        if not given:
            raise RecipeError("there are no ingredients; give at least one checkpoint")
        start = None if base is None else _open_one(base, "<base>", key)
        if start is not None and all(one is not start for one in given):
            *given, start = _told_apart([*given, start])
        given, self.adapter_base = with_bases(given, start)
        start, also = self._start(given, start)
        said += also
        self.reconcile = Reconcile() if reconcile is None else reconcile
        if self.reconcile.dequantise:
            given = [dequantised(one) for one in given]
            start = None if start is None else dequantised(start)
        given, self.base = reconciled(given, start, self.reconcile)
        given, self.base, like = one_vocabulary(given, self.base, self.reconcile.vocabulary)
        found = compare(given, base=self.base, options=self.reconcile)
        self.left_out: tuple[LeftOut, ...] = ()
        if on_mismatch == "error" and found:
            raise describe(found, given, base=self.base)
        if on_mismatch == "leave-out":
            given, self.left_out = _leave_out(given, found, base=self.base)
        self._given = tuple(given)
        self._check_patterns()
        self.donor = self._donor(donor)
        self.like = self.donor if like is None else like
        self.specs: Mapping[str, TensorSpec] = dict(self.donor)
        self.averaged = frozenset(
            name
            for name, spec in self.specs.items()
            if self.reconcile.mixes(name)
            and all(same_form(spec, other.get(name), self.reconcile) for other in self._given)
        )
        if not self.averaged and found:
            raise describe(found, given, base=self.base, remedy="No tensor is common to all.")
        self.tied = tied_everywhere([self.donor, *self._given])
        self.notes = (*said, *_notes(self))

    def _start(
        self, given: Sequence[Checkpoint], start: Checkpoint | None
    ) -> tuple[Checkpoint | None, list[str]]:
        """What ingredients are compared with: the base of adapters too, where it fits them."""
        if self.adapter_base is None:
            return start, []
        own = next((one.base for one in given if isinstance(one, Adapter)), self.adapter_base)
        if all(set(one) == set(own) for one in given if isinstance(one, Adapter)):
            return own, []
        if start is None:
            return None, []
        return None, [
            f"{own.path} is the base of the adapters, and lacks tensors that they bring, such as a "
            "head: it is not compared with them"
        ]

    def _check_patterns(self) -> None:
        names = {name for checkpoint in self._given for name in checkpoint}
        unused = self.reconcile.unused(names)
        if unused:
            raise RecipeError(
                f"no tensor matches {', '.join(map(repr, unused))}; names are like "
                f"{', '.join(map(repr, sorted(names)[:3]))} (--only, --exclude)"
            )

    def _donor(self, position: int | None) -> Checkpoint:
        """Where tensors come from that are not averaged, whatever the order of arguments."""
        if self.base is not None:
            return self.base
        if position is not None:
            return self._given[position]
        if self.on_mismatch != "common":
            return self._given[0]
        layouts = [frozenset(one.items()) for one in self._given]
        if len(set(layouts)) == 1:
            return self._given[0]
        ranks = [(layouts.count(layout), len(layout)) for layout in layouts]
        return self._given[next(i for i in self.canonical if ranks[i] == max(ranks))]

    @property
    def donor_position(self) -> int | None:
        """Where the donor stands among the ingredients; None where it is the base."""
        if self.base is not None:
            return None
        return next(i for i, one in enumerate(self._given) if one is self.donor)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Checkpoint]: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | Sequence[Checkpoint]:
        return self._given[index]

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._given)

    def __repr__(self) -> str:
        return f"<Ingredients: {len(self)} of {len(self.specs)} tensors>"

    @property
    def labels(self) -> list[str]:
        """The paths; one that is there twice, as with two sections of a file, gets a number."""
        return told_apart(one.path for one in self._given)

    @cached_property
    def leaders(self) -> Mapping[str, str]:
        """Every name in `tied` → the first name of its group; names that stand alone are absent."""
        return leaders_of(self.tied)

    @cached_property
    def zeros(self) -> Zeros | None:
        """Where their averaged weights are exactly zero; None if none of them is pruned.

        Made on first use: a few pages of each tensor are read, and everything where zeros abound.
        """
        names = [
            name
            for name, spec in self.specs.items()
            if name in self.averaged
            and self.leaders.get(name, name) == name
            and spec.dtype.mixable
            and len(spec.shape) > 1
            and spec.numel > 0
        ]
        if any(isinstance(one, Adapter) for one in self._given):
            return None  # what is added is dense
        found = count_zeros(self._given, names)
        if found is None:
            return None
        weights = [name for name in names if not is_table(self._given, name)]
        return found if len(weights) == len(names) else count_zeros(self._given, weights)

    @cached_property
    def canonical(self) -> tuple[int, ...]:
        """Positions of the ingredients in the order in which they are summed.

        The order depends on what they hold and on nothing else, so that the sum does not depend on
        the order of arguments: by a digest of the specs and of the first 4 KiB of every tensor,
        ties by fingerprint. Made on first use; it reads those 4 KiB.
        """
        heads = [head_digest(checkpoint.origin) for checkpoint in self._given]

        def order(index: int) -> tuple[bytes, str]:
            # Whole checkpoints are hashed only where the heads do not tell them apart.
            unique = heads.count(heads[index]) == 1
            return heads[index], "" if unique else self._given[index].fingerprint

        return tuple(sorted(range(len(self._given)), key=order))


def open_sources(
    sources: Iterable[Source] | Runs, *, key: str | None = None, base: Checkpoint | None = None
) -> list[Checkpoint]:
    """Each source as a checkpoint, headers read; a folder of runs stands for its runs.

    An adapter is seen with its base, where that is given or found.

    Raises:
        CheckpointError: some cannot be read; `problems` has the reason of each.
    """
    return with_bases(_open_all(sources, key)[0], base, required=False)[0]


def open_base(source: Source, *, key: str | None = None) -> Checkpoint:
    """The checkpoint that others come from; one in memory is called `<base>`."""
    if isinstance(source, Checkpoint | str | os.PathLike):
        return open_sources([source], key=key)[0]
    return _open_one(source, "<base>", key)


def _open_all(
    sources: Iterable[Source] | Runs, key: str | None
) -> tuple[list[Checkpoint], list[str]]:
    """Each source as a checkpoint, and what was left out of folders."""
    groups: list[Sequence[Source]]
    notes: list[str] = []
    if isinstance(sources, Runs):
        groups, notes = [*sources.groups], [*sources.notes]
    else:
        every = list(sources)
        runs = find_runs([one for one in every if isinstance(one, str | os.PathLike)])
        found = iter(runs.groups)
        groups = [next(found) if isinstance(one, str | os.PathLike) else [one] for one in every]
        notes = [*runs.notes]
    opened: list[Checkpoint] = []
    unreadable: list[CheckpointError] = []
    for group in groups:
        inside: list[Checkpoint] = []
        for source in group:
            try:
                inside.append(_open_one(source, f"<memory {len(opened) + len(inside)}>", key))
            except CheckpointError as error:
                unreadable.append(error)
        if len(inside) > 1 and not unreadable:
            kept, said = without_repeats([one.path for one in inside], _contents(inside))
            inside = [inside[i] for i in kept]
            notes += said
        opened += inside
    if len(unreadable) == 1:
        raise unreadable[0]
    if unreadable:
        raise _together(unreadable, len(opened) + len(unreadable))
    return _told_apart(opened), notes


def _told_apart(given: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The same, of which those in memory have names of their own: nothing else names them."""
    named = []
    for one, name in zip(given, told_apart(one.path for one in given), strict=True):
        if name != one.path and not one.files:
            one = copy.copy(one)  # the caller's keeps its name
            one.path = name
        named.append(one)
    return named


def _contents(checkpoints: Sequence[Checkpoint]) -> list[object]:
    """What is equal where contents are: whole checkpoints are hashed only where heads agree."""
    heads = [head_digest(checkpoint.origin) for checkpoint in checkpoints]
    return [
        head if heads.count(head) == 1 else (head, checkpoint.fingerprint)
        for head, checkpoint in zip(heads, checkpoints, strict=True)
    ]


def _together(errors: Sequence[CheckpointError], n: int) -> CheckpointError:
    """One error that lists them all, of their class where they have one."""
    kind = CheckpointError
    for narrower in (CheckpointFormatError, UnsafeCheckpointError):
        if all(isinstance(error, narrower) for error in errors):
            kind = narrower
    problems = tuple(str(error) for error in errors)
    error = kind(f"{len(errors)} of {n} checkpoints cannot be read:\n  " + "\n  ".join(problems))
    error.problems = problems
    return error


def _open_one(source: Source, name: str, key: str | None) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, str | os.PathLike):
        return open_checkpoint(source, key=key)
    return decode(from_state_dict(source, path=name))


def _leave_out(
    given: list[Checkpoint], found: Sequence[Mismatch], *, base: Checkpoint | None
) -> tuple[list[Checkpoint], tuple[LeftOut, ...]]:
    unfit = {mismatch.index: mismatch for mismatch in found}
    kept = [checkpoint for index, checkpoint in enumerate(given) if index not in unfit]
    if not kept:
        raise describe(found, given, base=base)
    left_out = tuple(
        LeftOut(given[mismatch.index].path, mismatch.problems) for mismatch in unfit.values()
    )
    return kept, left_out


def _notes(ingredients: Ingredients) -> tuple[str, ...]:
    notes = [f"{c.path}: {note}" for c in ingredients for note in c.notes]
    tied_somewhere = {n for c in ingredients for group in c.tied for n in group}
    untied = tied_somewhere - {n for group in ingredients.tied for n in group}
    if untied:
        notes.append(
            f"{len(untied)} tensors are tied in some ingredients and not in others, and are "
            f"averaged apart: {', '.join(sorted(untied)[:5])}"
        )
    tables = _differing_tables(ingredients)
    if tables:
        notes.append(
            f"{_names(tables, 5)}: by their names no weights but buffers, and they differ; they "
            "are averaged all the same (--exclude takes them from the base, else from the first)"
        )
    kept = [name for name in ingredients.specs if name not in ingredients.averaged]
    if kept:
        are = "tensor is" if len(kept) == 1 else "tensors are"
        notes.append(
            f"{len(kept)} {are} not averaged, but taken from {ingredients.donor.path}: "
            f"{_names(kept)}"
        )
    dropped = {n for c in ingredients for n in c if n not in ingredients.specs}
    if dropped:
        are = "tensor is" if len(dropped) == 1 else "tensors are"
        notes.append(
            f"{len(dropped)} {are} not in {ingredients.donor.path} and left out: "
            f"{_names(sorted(dropped))}"
        )
    return tuple(notes)


def _differing_tables(ingredients: Ingredients) -> list[str]:
    """Float buffers that are no weights and begin with other values in some ingredient."""
    names = [
        name
        for name in ingredients.averaged
        if name.rpartition(".")[2] in _TABLES and ingredients.specs[name].dtype.mixable
    ]
    wanted = [(name, 0, _HEAD_BYTES) for name in names]
    heads = [[head.tobytes() for head in one.pieces(wanted)] for one in ingredients]
    first = heads[0] if heads else []
    return sorted(
        name for i, name in enumerate(names) if any(other[i] != first[i] for other in heads)
    )


def _names(names: Sequence[str], limit: int = 50) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
