"""The record beside a soup: reading it, and building the soup again from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from stockpot import __version__
from stockpot._records import loads, parse, read_json, recorded_path
from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError, StockpotError, VerificationError
from stockpot.formats import remote
from stockpot.formats.assembled import Assembled
from stockpot.formats.base import Checkpoint
from stockpot.formats.fingerprint import has_fingerprint, head_mark
from stockpot.formats.opening import each_section
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.output import RECORD
from stockpot.formats.table import record_path, writes_folder
from stockpot.io.objects import is_remote, open_store
from stockpot.mixing import BufferPolicy, Coefficients, Mixture, NonzeroMask
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.reconcile import Reconcile
from stockpot.mixing.rules.table import rule_from_json
from stockpot.recipes.reading import read_summary
from stockpot.recipes.result import SoupSummary

if TYPE_CHECKING:
    from stockpot.mixing import Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCheckpoint:
    """An ingredient or a base, as a record names it.

    Attributes:
        path: where it was.
        fingerprint: of its content, by which it is found elsewhere.
        coefficient: its share; None where groups of tensors have shares of their own, and for a
            base.
        parts: the checkpoints that it was put together from, if it was.
        stored: tensor → which of the parts it comes from, and its name there.
        layers: see `Assembled`.
    """

    path: str
    fingerprint: str
    coefficient: float | None = None

    parts: tuple[RecordedCheckpoint, ...] = ()
    stored: Mapping[str, tuple[int, str]] = field(default_factory=dict, hash=False)
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMask:
    """What a record keeps of a mask: its hash, its share of zeros, and the tensors it covers."""

    fingerprint: str
    sparsity: float
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SoupRecord:
    """The record beside a soup: what rebuilds its weights, and what was decided and measured.

    It is read without opening an ingredient.

    Attributes:
        stockpot: version that wrote it.
        ingredients: in the order of the arguments.
        base: the common initialisation, if one was given.
        mixing: coefficients, as `Coefficients.to_json` gives them.
        common: whether only what all ingredients have in common was averaged.
        buffers: the policy for tensors that are not averaged.
        dtype: of the output; None for that of the ingredients.
        mask: what was set to zero.
        overrides: tensor → hash of the values that took the place of computed ones.
        output: fingerprint of the file.
        reconcile: what was asked for ingredients that differ in form; empty for nothing.
        donor: which ingredient tensors come from that are not averaged, where there is no base.
        rule: how tensors are combined where that is not a weighted mean.
        soup: the JSON of the soup.
        adapter: of an adapter, what its rank cut off; see `AdapterSum.cut_off`.
    """

    stockpot: str = "0"
    ingredients: tuple[RecordedCheckpoint, ...]
    base: RecordedCheckpoint | None = None
    mixing: Mapping[str, Any]
    rule: Mapping[str, Any] | None = None
    common: bool = False
    buffers: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    mask: RecordedMask | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    output: str | None = None
    reconcile: Mapping[str, Any] = field(default_factory=dict)
    donor: int = 0
    adapter: Mapping[str, Any] | None = None
    soup: Mapping[str, Any]

    @cached_property
    def summary(self) -> SoupSummary:
        """What was decided and measured.

        Raises:
            VerificationError: it is damaged.
        """
        try:
            return read_summary(self.soup)
        except StockpotError as error:
            raise VerificationError(f"the record of the soup is damaged: {error}") from error

    def to_json(self) -> dict[str, JSON]:
        """The JSON that is written."""
        found = asdict(self)
        for name in ("rule", "reconcile", "donor", "adapter"):
            if not found[name]:
                del found[name]
        for one in (*found["ingredients"], *([] if self.base is None else [found["base"]])):
            if not one["parts"]:
                del one["parts"], one["stored"], one["layers"]
        if found["base"] is not None:
            del found["base"]["coefficient"]
        return found

    @classmethod
    def from_json(cls, data: object, *, name: str = "the record") -> SoupRecord:
        """The record that `to_json` was made from.

        Raises:
            VerificationError: it is none; the message begins with `name` and says what is wrong.
        """
        lacks = ("ingredients", "mixing", "soup")
        missing = [key for key in lacks if not isinstance(data, dict) or key not in data]
        if missing:
            raise VerificationError(f"{name} is no record of a soup: it lacks {', '.join(missing)}")
        try:
            return parse(cls, data)
        except StockpotError as error:
            raise VerificationError(f"{name} is no record of a soup: {error}") from error

    @classmethod
    def read(cls, path: StrPath) -> SoupRecord:
        """The record of the checkpoint at `path`.

        Raises:
            VerificationError: there is none, or it is damaged.
        """
        beside = record_path(path)
        try:
            data = (
                _read_remote(os.fspath(path))
                if is_remote(os.fspath(path))
                else read_json(beside, error=VerificationError)
            )
        except FileNotFoundError:
            if not Path(path).exists():
                raise VerificationError(f"there is nothing at {os.fspath(path)}") from None
            raise VerificationError(
                f"{os.fspath(path)} has no record ({beside} does not exist); only what stockpot "
                "wrote can be verified"
            ) from None
        return cls.from_json(data, name=str(beside))

    def rebuild(
        self,
        path: StrPath,
        *,
        search: Iterable[StrPath] = (),
        overrides: bool = True,
        allow_remote: bool = False,
    ) -> Mixture:
        """The mixture that is described.

        Overrides are taken from the checkpoint at `path`, unless they are left out, and so is a
        mask that the ingredients do not have in common.

        A record may come from anybody, so that nothing it names elsewhere, such as `hf:org/name`,
        is fetched without `allow_remote`.

        Raises:
            VerificationError: ingredients are not where they were, or have changed, and are not
                found by fingerprint among `search`; all are listed. Or neither the ingredients nor
                `path` have zeros where they were recorded.
        """
        wanted = [*self.ingredients, *([] if self.base is None else [self.base])]
        opened = _open_all(wanted, search, allow_remote=allow_remote)
        base = None if self.base is None else opened.pop()
        ingredients = Ingredients(
            opened,
            base=base,
            on_mismatch="common" if self.common else "error",
            reconcile=Reconcile.from_json(self.reconcile, dtype=self.dtype),
            donor=self.donor,
        )
        output, names = open_checkpoint(path), list(self.overrides)
        return Mixture(
            ingredients,
            Coefficients.from_json(self.mixing),
            rule=None if self.rule is None else rule_from_json(self.rule),
            buffers=parse(BufferPolicy, self.buffers, error=VerificationError)
            if self.buffers
            else None,
            mask=_find_mask(self.mask, ingredients, output),
            overrides={name: output.read(name) for name in names} if overrides and names else None,
            dtype=self.dtype,
        )


def record_of(mixture: Mixture, soup: Mapping[str, JSON], saved: Saved | None) -> SoupRecord:
    """The record of a mixture, as it was saved."""
    given, shares = mixture.ingredients, mixture.coefficients
    by_model = shares.vectors.get("") if shares.by == "model" else None
    # Those that saving made on its way are not made again by reading everything once more.
    made = {} if saved is None else dict(zip(given, saved.fingerprints, strict=True))

    def named(checkpoint: Checkpoint, share: float | None = None) -> RecordedCheckpoint:
        together = checkpoint if isinstance(checkpoint, Assembled) else None
        return RecordedCheckpoint(
            path=_absolute(checkpoint.path),
            fingerprint=made.get(checkpoint) or checkpoint.fingerprint,
            coefficient=share,
            parts=() if together is None else tuple(named(one) for one in together.sources),
            stored={} if together is None else together.stored,
            layers=None if together is None else together.layers,
        )

    mask, overrides = mixture.mask, mixture.overrides
    return SoupRecord(
        stockpot=__version__,
        ingredients=tuple(
            named(checkpoint, None if by_model is None else by_model[i])
            for i, checkpoint in enumerate(given)
        ),
        base=_base(given),
        mixing=shares.to_json(),
        rule=None if mixture.rule.is_linear else mixture.rule.to_json(),
        common=len(given.averaged) < len(given.specs),
        buffers=mixture.buffers.to_json(),
        reconcile=given.reconcile.to_json(),
        donor=given.donor_position or 0,
        dtype=None if mixture.dtype is None else mixture.dtype.value,
        mask=None
        if mask is None
        else RecordedMask(
            fingerprint=mask.fingerprint, sparsity=mask.sparsity, tensors=tuple(mask)
        ),
        overrides={}
        if overrides is None
        else {name: tensor_digest(overrides, name) for name in overrides},
        output=None if saved is None else saved.fingerprint,
        adapter=None if mixture.adapters is None else mixture.adapters.cut_off(),
        soup=soup,
    )


def _read_remote(path: str) -> JSON:
    """The record of the output `path` in a store, which the user named."""
    store, key = open_store(path)
    name = f"{key}/{RECORD}" if writes_folder(path) else f"{key}.{RECORD}"
    if store.find(name) is None:
        raise VerificationError(f"{path} has no record ({store.name(name)} does not exist)")
    try:
        return loads(store.read(name))
    except ValueError as problem:
        raise VerificationError(f"{store.name(name)} cannot be read: {problem}") from problem


def _base(given: Ingredients) -> RecordedCheckpoint | None:
    """The base; that of adapters by its heads, since nothing reads the whole of it."""
    if given.adapter_base is not None:
        own = given.adapter_base
        return RecordedCheckpoint(path=_absolute(own.path), fingerprint=head_mark(own))
    if given.base is None:
        return None
    return RecordedCheckpoint(path=_absolute(given.base.path), fingerprint=given.base.fingerprint)


def _absolute(path: str) -> str:
    elsewhere = _in_memory(path) or remote.has_scheme(path)
    return path if elsewhere else recorded_path(path)


def _in_memory(path: str) -> bool:
    """Whether `path` is no path but a name, such as `<memory 0>`, of what was given as tensors."""
    return path.startswith("<")


def _find_mask(
    recorded: RecordedMask | None, ingredients: Ingredients, output: Checkpoint
) -> NonzeroMask | None:
    """The mask whose hash was recorded: the zeros that all ingredients share, or the output's."""
    if recorded is None:
        return None
    for checkpoints in ([*ingredients], [output]):
        if all(name in one for name in recorded.tensors for one in checkpoints):
            mask = NonzeroMask(checkpoints, recorded.tensors)
            if mask.fingerprint == recorded.fingerprint:
                return mask
    raise VerificationError(
        f"the zeros of {output.path} are not those of the mask that was recorded "
        f"({recorded.fingerprint}, {100 * recorded.sparsity:.2f} % zero): it has changed",
        ["the mask is not the one that was recorded"],
    )


def verify(
    path: StrPath, *, search: Iterable[StrPath] = (), allow_remote: bool = False
) -> list[str]:
    """Differences between the checkpoint at `path` and its record; none is good.

    The linear part is computed again and compared bit for bit, its zeros among them; masks and
    overrides by their hash.

    Args:
        path: the checkpoint of a soup, with its record beside it.
        search: files or folders where ingredients that moved are looked for, by fingerprint.
        allow_remote: fetch ingredients that the record names elsewhere, such as `hf:org/name`;
            otherwise nothing in a record reaches the network.

    Raises:
        VerificationError: there is no record, or ingredients are not found.
    """
    record, output = SoupRecord.read(path), open_checkpoint(path)
    mixture = record.rebuild(path, search=search, overrides=False, allow_remote=allow_remote)
    made = mixture.written(path)
    differences = [f"{name} is missing" for name in made if name not in output]
    differences += [f"{name} is not in the recipe" for name in output if name not in made]
    for name in made:
        if name not in output:
            continue
        if output[name] != made[name]:
            differences.append(f"{name} is {output[name]}, expected {made[name]}")
        elif name in record.overrides:
            if tensor_digest(output, name) != record.overrides[name]:
                differences.append(f"{name} is not the override that was recorded")
        else:
            n_wrong = int((output.raw(name) != made.raw(name)).sum())
            if n_wrong:
                differences.append(f"{name} differs in {n_wrong} bytes")
    return differences


def find_by_fingerprint(wanted: Iterable[str], search: Iterable[StrPath]) -> dict[str, Checkpoint]:
    """Checkpoints with these fingerprints among files, or anywhere below folders."""
    missing, found = set(wanted), dict[str, Checkpoint]()
    for path in _candidates(search):
        if not missing:
            break
        try:
            checkpoint = open_checkpoint(path)
            names = {one for one in missing if has_fingerprint(checkpoint, one)}
        except (CheckpointError, OSError):
            continue  # other files lie about; only what can be read can be an ingredient
        missing -= names
        found |= dict.fromkeys(names, checkpoint)
    return found


def tensor_digest(checkpoint: Checkpoint, name: str) -> str:
    """XXH3-128 of dtype, shape and values of one tensor."""
    spec = checkpoint[name]
    state = xxhash.xxh3_128(f"{spec.dtype.value} {spec.shape}".encode())
    state.update(np.ascontiguousarray(checkpoint.raw(name)).data)
    return state.hexdigest()


def _open_all(
    wanted: Sequence[RecordedCheckpoint], search: Iterable[StrPath], *, allow_remote: bool
) -> list[Checkpoint]:
    """Each where it was or, if it moved, where its fingerprint is found."""
    here = {one: _open_if_same(one, allow_remote=allow_remote) for one in wanted}
    missing = [one.fingerprint for one, found in here.items() if isinstance(found, str)]
    elsewhere = find_by_fingerprint(missing, search) if missing else {}
    opened, lost = list[Checkpoint](), list[RecordedCheckpoint]()
    for one in wanted:
        found = here[one]
        if isinstance(found, str):
            found = elsewhere.get(one.fingerprint, found)
        if isinstance(found, str):
            lost.append(one)
        else:
            opened.append(found)
    if lost:
        away = [one for one in lost if remote.has_scheme(one.path)]
        unsaved = [one for one in lost if _in_memory(one.path)]
        gone = len(lost) - len(unsaved)
        states = [f"{gone} of {len(wanted)} ingredients are gone or have changed"] * (gone > 0)
        if unsaved:
            states.append(
                f"{len(unsaved)} of {len(wanted)} ingredients were given in memory and never were "
                "files"
            )
        lines = [f"  {one.path}  fingerprint {one.fingerprint}" for one in lost]
        lines += [f"  {one.path} {here[one]}" for one in away]
        advice = "Say where they may be: search=[DIR] (--search DIR)."
        if away and not allow_remote:
            advice = (
                "Give a folder with copies, search=[DIR] (--search DIR), or say that what a record "
                "names may be fetched: allow_remote=True (--allow-remote)."
            )
        if unsaved:
            advice = f"Save what was in memory, with these weights. {advice}"
        raise VerificationError(
            "\n".join([f"{'; '.join(states)}:", *lines, advice]),
            [f"{one.path} {here[one]}" for one in lost],
        )
    return opened


def _open_if_same(recorded: RecordedCheckpoint, *, allow_remote: bool) -> Checkpoint | str:
    """The checkpoint where it was, or why it is not to be had there.

    All that a record names is opened here: names of things elsewhere only if they are allowed.
    """
    if recorded.parts:
        return _together(recorded, allow_remote=allow_remote)
    if _in_memory(recorded.path):
        return "was given in memory and never was a file"
    away = remote.has_scheme(recorded.path)
    if away and not allow_remote:
        return "is not on this machine and was not fetched"
    why = "is not found"
    try:
        checkpoint = open_checkpoint(recorded.path)
        if has_fingerprint(checkpoint, recorded.fingerprint):
            return checkpoint
    except (CheckpointError, OSError) as error:
        why = f"is not found: {error}" if away else why
    if away:
        return why
    # It may have been opened by a key.
    found = (o for o in each_section(recorded.path) if has_fingerprint(o, recorded.fingerprint))
    return next(found, why)


def _together(recorded: RecordedCheckpoint, *, allow_remote: bool) -> Checkpoint | str:
    parts = [_open_if_same(one, allow_remote=allow_remote) for one in recorded.parts]
    missing = [f"{one.path} {why}" for one, why in zip(recorded.parts, parts, strict=True)
               if isinstance(why, str)]  # fmt: skip
    opened = [one for one in parts if not isinstance(one, str)]
    if missing:
        return f"is made of checkpoints of which {'; '.join(missing)}"
    try:
        made = Assembled(opened, recorded.stored, layers=recorded.layers)
    except (CheckpointError, IndexError) as error:
        return f"cannot be put together: {error}"
    return made if made.fingerprint == recorded.fingerprint else "is not found"


def _candidates(search: Iterable[StrPath]) -> Iterator[str]:
    for place in map(Path, search):
        yield os.fspath(place)
        if place.is_dir():
            inside = sorted(place.rglob("*"))
            yield from (remote.local_name(p) for p in inside if not p.name.startswith("."))
