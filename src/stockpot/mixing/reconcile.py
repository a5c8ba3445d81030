"""Checkpoints that differ in form only: wrappers' prefixes, other names, counters of wrappers.

What is unambiguous is reconciled without being asked, and said; the rest takes an option. Nothing
is done where all names agree already: what everybody has comes out as it came in.
"""

from __future__ import annotations

import fnmatch
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stockpot._options import option
from stockpot._records import parse
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.base import Checkpoint, View
from stockpot.formats.memory import hold
from stockpot.io.objects import RemoteFile
from stockpot.tensors.spec import DType, TensorSpec, parse_dtype

_WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "averaged_model.", "model_ema.", "ema.")
"""What wrappers put before all names: data parallel, torch.compile, averages of weights."""
_INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What they put within names, before those of the module that they wrap."""
_COUNTERS = frozenset({"n_averaged", "initted", "step", "num_updates", "decay", "optimizer_step"})
"""Names, without a prefix, of what wrappers keep beside the weights."""
_DEEPEST = 8
"""Parts that a prefix may have."""
_LEAST_OVERLAP = 0.5
"""Share of the names of one side that a prefix has to make agree."""


@dataclass(frozen=True, kw_only=True)
class Reconcile:
    """What to do about checkpoints that differ in form, and which tensors are mixed.

    Attributes:
        dtype: type of the output; with it, floating types that differ are mixed exactly, and
            without it they are refused.
        strip_prefix: removed from names that begin with one of them.
        rename: `"OLD=NEW"`: `OLD` at the beginning of a name, or after a dot, becomes `NEW`.
        only: shell patterns; tensors that match none come from the base, else from the first.
        exclude: shell patterns; tensors that match one come from the base, else from the first.
        buffers: what integer buffers that differ become: `"error"` refuses them, `"maximum"`,
            `"first"` (of the ingredients that take part), or `"base"`. Counters become the
            largest in any case.
        vocabulary: what to do where embeddings and heads have rows for other tokens: `"error"`
            refuses; `"common"` takes the vocabulary of the base, else of the smallest; `"union"`
            that of the one that has all tokens. Rows that all have are averaged; another is the
            base's, where it has one, else the mean of those that have it.
        merge: a mixture of adapters is written, and scored, as the full model, and not as the
            adapter that it is.
        rank: most that a mixture of adapters may have; None for as much as it takes to be exact.
        dequantise: read weights in fp8 with scales as the bfloat16 ones that they stand for.

    Raises:
        RecipeError: a renaming without `=`, or an unknown policy.
    """

    dtype: DType | str | None = None
    strip_prefix: tuple[str, ...] = option(
        (), metavar="PREFIX", help="Remove it from the names that begin with it."
    )
    rename: tuple[str, ...] = option(
        (), metavar="OLD=NEW", help="Another beginning for names, or for a part after a dot."
    )
    only: tuple[str, ...] = option(
        (), metavar="PATTERN", help="Mix these tensors; others are the base's, else the first's."
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="Take these tensors from the base, else from the first."
    )
    buffers: Literal["error", "maximum", "first", "base"] = option(
        "error", help="What integer buffers become that differ and are no counters."
    )
    vocabulary: Literal["error", "common", "union"] = option(
        "error", help="Average models with added tokens: the tokens that all have, or all tokens."
    )
    merge: bool = option(False, help="Of adapters: write the full model, not an adapter.")
    rank: int | None = option(
        None,
        excludes="merge",
        minimum=1,
        metavar="R",
        help="Of adapters: write the best adapter of this rank; default: the exact one.",
    )
    dequantise: bool = option(
        False, help="Read weights in fp8 with scales as the bfloat16 that they stand for."
    )

    def __post_init__(self) -> None:
        wrong = [text for text in self.rename if not text.partition("=")[0] or "=" not in text]
        if wrong:
            raise RecipeError(
                f"{', '.join(map(repr, wrong))}: write rename as OLD=NEW, such as 'vit.=encoder.'"
            )
        if self.rank is not None and (self.rank < 1 or self.merge):
            raise RecipeError(
                f"rank is {self.rank}{' and merge is set' if self.merge else ''}; expected at "
                "least 1, of an adapter"
            )
        if self.buffers not in ("error", "maximum", "first", "base"):
            raise RecipeError(
                f"buffers is {self.buffers!r}; expected error, maximum, first or base"
            )

        if self.vocabulary not in ("error", "common", "union"):
            raise RecipeError(f"vocabulary is {self.vocabulary!r}; expected error, common or union")

    def form(self, dtype: DType | str | None = None) -> Reconcile:
        """These options alone, for an output of type `dtype`; `self` may be more than them."""
        options = {item.name: getattr(self, item.name) for item in fields(Reconcile)}
        return Reconcile(**options if dtype is None else {**options, "dtype": dtype})

    @property
    def output_dtype(self) -> DType | None:
        """`dtype`, parsed."""
        return parse_dtype(self.dtype) if isinstance(self.dtype, str) else self.dtype

    def mixes(self, name: str) -> bool:
        """Whether tensor `name` is to be mixed, as far as patterns say."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        return not self.only or any(fnmatch.fnmatchcase(name, p) for p in self.only)

    def unused(self, names: Iterable[str]) -> list[str]:
        """Patterns that match none of `names`."""
        known = list(names)
        return [p for p in (*self.only, *self.exclude) if not fnmatch.filter(known, p)]

    def to_json(self) -> dict[str, JSON]:
        """What is not the default, except the dtype, which records have beside it."""
        return {
            item.name: list(value) if isinstance(value, tuple) else value
            for item in fields(self)
            if item.name != "dtype" and (value := getattr(self, item.name)) != item.default
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, dtype: DType | str | None = None) -> Reconcile:
        """The value that `to_json` was made from."""
        known = {item.name for item in fields(cls)} - {"dtype"}
        options = {k: v for k, v in data.items() if k in known}
        return parse(cls, {**options, "dtype": dtype}, error=RecipeError)

    def renamed(self, name: str) -> str:
        """What the options make of a name."""
        for text in self.rename:
            old, _, new = text.partition("=")
            name = re.sub(rf"(^|\.){re.escape(old)}", lambda m: m.group(1) + new, name, count=1)  # noqa: B023
        longest = sorted(self.strip_prefix, key=len, reverse=True)
        prefix = next((p for p in longest if name.startswith(p) and len(name) > len(p)), "")
        return name[len(prefix) :]


class ReconciledCheckpoint(View):
    """A checkpoint under other names, some left out; in records and caches it is the original.

    Args:
        source: the checkpoint as it was opened.
        names: new name → name in the source.
        notes: what was done; they come before those of `source`.
    """

    def __init__(
        self, source: Checkpoint, names: Mapping[str, str], *, notes: tuple[str, ...]
    ) -> None:
        self.stored = dict(names)
        self.own_notes = notes
        new = {old: name for name, old in names.items()}
        groups = ([new[name] for name in group if name in new] for group in source.tied)
        super().__init__(
            source,
            {name: replace(source[old], name=name) for name, old in names.items()},
            tied=tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1)),
            notes=(*notes, *source.notes),
        )
        self.computed = source.computed

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, which may have another name in the source."""
        self[name]  # refuses names that there are not
        return self.source.raw(self.stored[name])

    def scattered(self, name: str) -> bool:
        """As in the source."""
        return self.source.scattered(self.stored[name])

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """From the source."""
        return self.source.part(self.stored[name], start, stop)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in the source."""
        return self.source.in_store(self.stored[name])

    def over(self, source: Checkpoint) -> ReconciledCheckpoint:
        """The same of another copy of its source."""
        return ReconciledCheckpoint(source, self.stored, notes=self.own_notes)

    @property
    def origin(self) -> Checkpoint:
        """The source: its path leads to it, and to its names."""
        return self.source.origin

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint

    @property
    def key(self) -> str:
        """That of the source, if it computes its values."""
        return self.source.key


class PartlyMade(ReconciledCheckpoint):
    """A checkpoint some of whose tensors are made here, piece by piece. It is abstract.

    Args:
        source: the checkpoint as it was.
        made: specs of the tensors that are made here, by name.
        left_out: tensors of the source that are not here.
        notes: what was done.
    """

    def __init__(
        self,
        source: Checkpoint,
        made: Mapping[str, TensorSpec],
        *,
        left_out: Collection[str] = (),
        notes: tuple[str, ...],
    ) -> None:
        kept = {name: name for name in source if name not in left_out}
        super().__init__(source, kept, notes=notes)
        self._made = frozenset(made)
        for name, spec in made.items():
            self._specs[name] = spec
            del self.stored[name]

    @abstractmethod
    def make(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of a tensor that is made here."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`."""
        if name not in self._made:
            return super().raw(name)
        raw = self.make(name, 0, self[name].nbytes)
        raw.flags.writeable = False
        return raw

    def scattered(self, name: str) -> bool:
        """Whether its values are made here, piece by piece."""
        return name in self._made or super().scattered(name)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`."""
        made = name in self._made
        return self.make(name, start, stop) if made else super().part(name, start, stop)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """As in the source, where nothing is made of it."""
        return None if name in self._made else super().in_store(name)


@dataclass(frozen=True)
class _Names:
    """The names of one checkpoint while they are reconciled: new → stored."""

    checkpoint: Checkpoint
    stored: dict[str, str]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Names:
        return cls(checkpoint, {name: name for name in checkpoint})

    def mapped(self, change: Mapping[str, str | None], note: str) -> _Names:
        """With names changed, or left out where `change` says None; unchanged if two collide."""
        new = [(change.get(name, name), old) for name, old in self.stored.items()]
        kept = {name: old for name, old in new if name is not None}
        if len(kept) < sum(name is not None for name, _ in new) or kept == self.stored:
            return self
        return replace(self, stored=kept, notes=(*self.notes, note))

    def spec(self, name: str) -> TensorSpec:
        return self.checkpoint[self.stored[name]]

    @property
    def result(self) -> Checkpoint:
        if list(self.stored.items()) == [(name, name) for name in self.checkpoint]:
            return self.checkpoint
        return ReconciledCheckpoint(self.checkpoint, self.stored, notes=self.notes)


def reconciled(
    given: Sequence[Checkpoint], base: Checkpoint | None, options: Reconcile
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The checkpoints with names that agree, as far as that is unambiguous; their notes say how.

    Args:
        given: the ingredients.
        base: what they come from, if it is given.
        options: what was asked for.

    Raises:
        RecipeError: names become equal by a renaming or a stripped prefix.
    """
    every = [_Names.of(checkpoint) for checkpoint in (*given, *([] if base is None else [base]))]
    every = [_asked(names, options) for names in every]
    if _differ(every):
        every = [_without_inner(names) for names in every]
    if _differ(every):
        every = _without_counters(every)
        every = _with_one_prefix(every, n_given=len(given))
    results = [names.result for names in every]
    return results[: len(given)], None if base is None else results[-1]


def _asked(names: _Names, options: Reconcile) -> _Names:
    change: dict[str, str | None] = {name: options.renamed(name) for name in names.stored}
    n_changed = sum(old != new for old, new in change.items())
    if n_changed == 0:
        return names
    twice = [name for name, n in Counter(change.values()).items() if n > 1]
    if twice:
        raise RecipeError(
            f"{names.checkpoint.path}: several tensors would be called {twice[0]!r}; expected a "
            "renaming or a prefix that keeps them apart"
        )
    return names.mapped(change, f"{n_changed} names were changed as asked")


def _differ(every: Sequence[_Names]) -> bool:
    return len({frozenset(names.stored) for names in every}) > 1


def _without_inner(names: _Names) -> _Names:
    change: dict[str, str | None] = {}
    for name in names.stored:
        short = name
        for part in _INNER:
            short = re.sub(rf"(^|\.){re.escape(part)}", r"\1", short)
        if short != name:
            change[name] = short
    parts = ", ".join(repr(part) for part in _INNER if any(part in name for name in change))
    return (
        names.mapped(change, f"{parts} was removed from {len(change)} names") if change else names
    )


def _without_counters(every: list[_Names]) -> list[_Names]:
    """Counters of wrappers are left out where not all checkpoints have them."""
    common = frozenset.intersection(*(frozenset(names.stored) for names in every))
    results = []
    for names in every:
        extra = [n for n in names.stored if n in _COUNTERS - common and names.spec(n).numel <= 1]
        note = f"left out, as counters of a wrapper that averages: {', '.join(extra)}"
        results.append(names.mapped(dict.fromkeys(extra), note) if extra else names)
    return results


def _with_one_prefix(every: list[_Names], *, n_given: int) -> list[_Names]:
    """Names that differ by one prefix, or by one before all but a head, made to agree."""
    for _ in every:
        layouts = [frozenset(names.stored) for names in every]
        usual = every[layouts.index(max(layouts, key=layouts.count))]
        others = dict(zip(layouts, every, strict=True)).values()
        found = next(
            (
                (short, long, prefix)
                for other in others
                for short, long in ((usual, other), (other, usual))
                if (prefix := _prefix_between(short, long))
            ),
            None,
        )
        if found is None:
            return every
        every = _apply(every, *found, n_given=n_given)
    return every


def _prefix_between(short: _Names, long: _Names) -> str | None:
    """What has to stand before the names of `short` for them to be names of `long`."""
    before: dict[str, list[str]] = {}
    for name in long.stored:
        for dot in islice(re.finditer(r"\.", name), _DEEPEST):
            before.setdefault(name[dot.end() :], []).append(name[: dot.end()])
    counts: Counter[str] = Counter()
    for name in short.stored:
        shape = short.spec(name).shape
        counts.update(p for p in before.get(name, ()) if long.spec(p + name).shape == shape)
    least = _LEAST_OVERLAP * min(len(short.stored), len(long.stored))
    most = max(counts.values(), default=0)
    best = [prefix for prefix, n in counts.items() if n == most]
    agreeing = len(short.stored.keys() & long.stored.keys())
    if len(best) != 1 or counts[best[0]] < max(least, agreeing + 1):
        return None
    return best[0]


def _apply(
    every: list[_Names], short: _Names, long: _Names, prefix: str, *, n_given: int
) -> list[_Names]:
    """`prefix` taken from the names of `long`, or put before those of `short`.

    Wrappers' prefixes are taken away. Others belong to the model: names of the ingredients stay,
    of the many rather than of the few, and those that have more beside the prefix (a head).
    """
    whole = all(name.startswith(prefix) and len(name) > len(prefix) for name in long.stored)
    wrapper = not re.sub("|".join(map(re.escape, _WRAPPERS)), "", prefix)
    given = [frozenset(names.stored) for names in every[:n_given]]
    n_short, n_long = given.count(frozenset(short.stored)), given.count(frozenset(long.stored))
    strip = whole and (wrapper or n_short >= n_long)
    target, changed = (short, long) if strip else (long, short)
    change: dict[str, str | None] = {
        name: name[len(prefix) :] if strip else prefix + name for name in changed.stored
    }
    done = "removed from" if strip else "put before"
    note = f"the prefix {prefix!r} was {done} {len(change)} names, as in {target.checkpoint.path}"
    names_of = frozenset(changed.stored)
    return [n.mapped(change, note) if frozenset(n.stored) == names_of else n for n in every]


def held(checkpoint: Checkpoint) -> Checkpoint:
    """A copy of `checkpoint` in memory, in records and caches the original; see `formats.hold`."""
    if isinstance(checkpoint, Adapter):  # mixed from its factors, which the page cache holds
        return checkpoint
    if isinstance(checkpoint, ReconciledCheckpoint):
        return checkpoint.over(held(checkpoint.source))
    return hold(checkpoint)
