"""Which base adapters belong to, and that it is one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stockpot._records import read_json
from stockpot.errors import CheckpointError, MismatchError, Problem, StockpotError
from stockpot.formats import remote
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.reading import is_adapter, read_layout
from stockpot.formats.base import Checkpoint
from stockpot.formats.fingerprint import head_mark
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.output import RECORD


def with_bases(
    given: Sequence[Checkpoint], base: Checkpoint | None, *, required: bool = True
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """`given` with every adapter on its base, and that base; as they are where none is an adapter.

    The base is the one that is given, else the one that their configuration names: a folder on this
    machine, or a model that the hub's cache holds. Nothing is fetched.

    Args:
        given: open checkpoints; adapters that have a base already may be among them.
        base: what they were trained on.
        required: whether adapters without a base are refused, or stay as they are stored.

    Raises:
        CheckpointError: an adapter is of a kind that cannot be used.
        MismatchError: no base is found; or an adapter does not fit it, or names another. All are
            listed.
    """
    places = [i for i, one in enumerate(given) if isinstance(one, Adapter) or is_adapter(one)]
    if base is not None and (isinstance(base, Adapter) or is_adapter(base)):
        raise CheckpointError(
            f"{base.path} is an adapter, which is no base: give the model that it was trained on, "
            "base=… (--base), or merge it first (stockpot average ADAPTER -o OUT --merge)"
        )
    if not places:
        return list(given), None
    stored = {i: one.source if isinstance(one, Adapter) else one for i, one in
              enumerate(given) if i in places}  # fmt: skip
    claims = _claims(stored)
    if base is None:
        base = _known_base([given[i] for i in places]) or _claimed_base(claims)
    if base is None:
        if not required:
            return list(given), None
        raise _no_base(stored, claims)
    _refuse_others(stored, claims, base)
    return _bound(given, stored, base), base


def _claims(stored: dict[int, Checkpoint]) -> dict[int, str | None]:
    """What each adapter calls its base; every one that cannot be used is named at once."""
    claims: dict[int, str | None] = {}
    problems: list[CheckpointError] = []
    for i, adapter in stored.items():
        try:
            claims[i] = read_layout(adapter).base
        except CheckpointError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        texts = [str(error) for error in problems]
        raise type(problems[0])("\n".join(texts))
    return claims


def _known_base(adapters: Sequence[Checkpoint]) -> Checkpoint | None:
    return next((_unchanged(one) for one in adapters if isinstance(one, Adapter)), None)


def _unchanged(adapter: Adapter) -> Checkpoint:
    """The base as it was opened, not as the adapter sees its names."""
    return adapter.given_base


def _claimed_base(claims: dict[int, str | None]) -> Checkpoint | None:
    for claim in dict.fromkeys(claims.values()):
        found = None if claim is None else _local(claim)
        if found is not None:
            return open_checkpoint(found)
    return None


def _local(claim: str) -> str | None:
    """Where on this machine the model is that an adapter names."""
    if Path(claim).exists():
        return remote.local_name(Path(claim))
    return remote.cached(claim)


def _no_base(stored: dict[int, Checkpoint], claims: dict[int, str | None]) -> MismatchError:
    few = "1 adapter needs" if len(stored) == 1 else f"{len(stored)} adapters need"
    named = sorted({claim for claim in claims.values() if claim is not None})
    what = (
        f"the configuration names {', '.join(named)}, which is not on this machine"
        if named
        else "no configuration names one"
    )
    lines = [f"  {one.path}" for one in list(stored.values())[:20]]
    return MismatchError(
        "\n".join(
            [
                f"{few} the base of its training, and {what}:",
                *lines,
                "Give it: base=DIR (--base DIR, or --base hf:org/name to fetch it). The result is "
                "an adapter again, or the full model with --merge.",
            ]
        ),
        [Problem(one.path, None, "an adapter", "its base") for one in stored.values()],
    )


def _refuse_others(
    stored: dict[int, Checkpoint], claims: dict[int, str | None], base: Checkpoint
) -> None:
    """Refuse adapters that say that they were trained on another base.

    Raises:
        MismatchError: names them.
    """
    names = {i: _name(claim) for i, claim in claims.items() if claim is not None}
    usual = Counter(names.values()).most_common(1)
    accepted = {_name(base.path)} | ({usual[0][0]} if usual else set())
    others: dict[int, str] = {}
    for i, claim in claims.items():
        recorded = _recorded_base(stored[i])
        if recorded is not None and recorded != head_mark(base):
            others[i] = "another base, by the record beside it"
            continue
        local = None if claim is None else _local(claim)
        if claim is None or (local is None and names[i] in accepted):
            continue
        if local is None or not _same_model(local, base):
            others[i] = claim
    if others:
        problems = [Problem(stored[i].path, None, claim, base.path) for i, claim in others.items()]
        raise MismatchError(
            "\n".join(
                [
                    f"{len(others)} of {len(stored)} adapters were not trained on {base.path}:",
                    *(f"  {p.ingredient}  says {p.found}" for p in problems),
                    "What they change starts elsewhere, and has no mean with the others: leave "
                    "them out. If it is the same model under another name, correct "
                    "base_model_name_or_path in their adapter_config.json.",
                ]
            ),
            problems,
        )


def _name(path: str) -> str:
    return Path(path.removeprefix("hf:").partition("@")[0]).name.lower()


def _same_model(local: str, base: Checkpoint) -> bool:
    if os.path.realpath(local) == os.path.realpath(base.path):
        return True
    try:
        return head_mark(open_checkpoint(local)) == head_mark(base)
    except (CheckpointError, OSError):
        return False


def _recorded_base(adapter: Checkpoint) -> str | None:
    """The mark of the base of an adapter that stockpot wrote."""
    place = Path(adapter.path)
    beside = place / RECORD if place.is_dir() else place.with_name(f"{place.name}.{RECORD}")
    try:
        data = read_json(beside)
    except (OSError, StockpotError):
        return None
    base = data.get("base") if isinstance(data, dict) else None
    found = base.get("fingerprint") if isinstance(base, dict) else None
    return found if isinstance(found, str) and found.startswith("heads:") else None


def _bound(
    given: Sequence[Checkpoint], stored: dict[int, Checkpoint], base: Checkpoint
) -> list[Checkpoint]:
    made, errors = list[Checkpoint](), list[MismatchError]()
    for i, one in enumerate(given):
        if i not in stored or (isinstance(one, Adapter) and one.given_base is base):
            made.append(one)
            continue
        try:
            made.append(Adapter(base, stored[i]))
        except MismatchError as error:
            errors.append(error)
    if errors:
        problems = [p for error in errors for p in error.problems]
        raise MismatchError("\n".join(str(error) for error in errors), problems)
    return made
