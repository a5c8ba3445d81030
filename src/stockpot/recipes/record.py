"""The record beside a soup: reading it, and building the soup again from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError, VerificationError
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.table import record_path
from stockpot.mixing import BufferPolicy, Coefficients, Mask, Mixture, NonzeroMask
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.rules import rule_from_json


def read_record(path: StrPath) -> dict[str, Any]:
    """The record of the checkpoint at `path`.

    Raises:
        VerificationError: there is none, or it is damaged.
    """
    beside = record_path(path)
    try:
        record: dict[str, Any] = json.loads(beside.read_bytes())
    except FileNotFoundError:
        if not Path(path).exists():
            raise VerificationError(f"there is nothing at {os.fspath(path)}") from None
        raise VerificationError(
            f"{os.fspath(path)} has no record ({beside} does not exist); only what stockpot wrote "
            "can be verified"
        ) from None
    except (OSError, ValueError) as error:
        raise VerificationError(f"the record {beside} cannot be read: {error}") from error
    missing = [key for key in ("ingredients", "mixing", "soup") if key not in record]
    if missing:
        raise VerificationError(f"{beside} is no record of a soup: it lacks {', '.join(missing)}")
    return record


def rebuild(
    record: Mapping[str, Any],
    path: StrPath,
    *,
    search: Iterable[StrPath] = (),
    overrides: bool = True,
) -> Mixture:
    """The mixture that `record` describes.

    Overrides are taken from the checkpoint at `path`, unless they are left out, and so is a mask
    that the ingredients do not have in common.

    Raises:
        VerificationError: ingredients are not where they were, or have changed, and are not found
            by fingerprint among `search`; all are listed. Or neither the ingredients nor `path`
            have zeros where they were recorded.
    """
    told = [*record["ingredients"], *([] if record["base"] is None else [record["base"]])]
    found = list(_locate(told, search))
    lost = [entry for entry, place in zip(told, found, strict=True) if place is None]
    if lost:
        lines = [f"  {entry['path']}  fingerprint {entry['fingerprint']}" for entry in lost]
        raise VerificationError(
            "\n".join(
                [
                    f"{len(lost)} of {len(told)} ingredients are gone or have changed:",
                    *lines,
                    "Say where they may be: search=[DIR] (--search DIR).",
                ]
            ),
            [f"{entry['path']} is not found" for entry in lost],
        )
    opened = [checkpoint for checkpoint in found if checkpoint is not None]
    base = None if record["base"] is None else opened.pop()
    ingredients = Ingredients(
        opened, base=base, on_mismatch="common" if record["common"] else "error"
    )
    output, names = open_checkpoint(path), list(record["overrides"])
    return Mixture(
        ingredients,
        Coefficients.from_json(record["mixing"]),
        rule=rule_from_json(record["rule"]) if "rule" in record else None,
        buffers=BufferPolicy(tuple(record["buffers"]["counters"]), record["buffers"]["differing"]),
        mask=_recorded_mask(record, ingredients, output),
        overrides={name: output.read(name) for name in names} if overrides and names else None,
        dtype=record["dtype"],
    )


def mask_to_json(mask: Mask | NonzeroMask) -> JSON:
    """What a record keeps of a mask: its hash, and which tensors it covers."""
    return {"fingerprint": mask.fingerprint, "sparsity": mask.sparsity, "tensors": [*mask]}


def _recorded_mask(
    record: Mapping[str, Any], ingredients: Ingredients, output: Checkpoint
) -> NonzeroMask | None:
    """The mask whose hash was recorded: the zeros that all ingredients share, or the output's."""
    told = record.get("mask")
    if told is None:
        return None
    for checkpoints in ([*ingredients], [output]):
        if all(name in one for name in told["tensors"] for one in checkpoints):
            mask = NonzeroMask(checkpoints, told["tensors"])
            if mask.fingerprint == told["fingerprint"]:
                return mask
    raise VerificationError(
        f"the zeros of {output.path} are not those of the mask that was recorded "
        f"({told['fingerprint']}, {100 * told['sparsity']:.2f} % zero): it has changed",
        ["the mask is not the one that was recorded"],
    )


def verify(path: StrPath, *, search: Iterable[StrPath] = ()) -> list[str]:
    """Differences between the checkpoint at `path` and what its record says; none is good.

    The linear part is computed again and compared bit for bit, its zeros among them; masks and
    overrides by their hash.

    Args:
        path: the checkpoint of a soup, with its record beside it.
        search: files or folders where ingredients that moved are looked for, by fingerprint.

    Raises:
        VerificationError: there is no record, or ingredients are not found.
    """
    record, output = read_record(path), open_checkpoint(path)
    mixture = rebuild(record, path, search=search, overrides=False)
    differences = [f"{name} is missing" for name in mixture if name not in output]
    differences += [f"{name} is not in the recipe" for name in output if name not in mixture]
    for name in mixture:
        if name not in output:
            continue
        if output[name] != mixture[name]:
            differences.append(f"{name} is {output[name]}, expected {mixture[name]}")
        elif name in record["overrides"]:
            if tensor_digest(output, name) != record["overrides"][name]:
                differences.append(f"{name} is not the override that was recorded")
        else:
            n_wrong = int((output.raw(name) != mixture.raw(name)).sum())
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
            fingerprint = checkpoint.fingerprint
        except (CheckpointError, OSError):
            continue  # other files lie about; only what can be read can be an ingredient
        if fingerprint in missing:
            missing.discard(fingerprint)
            found[fingerprint] = checkpoint
    return found


def tensor_digest(checkpoint: Checkpoint, name: str) -> str:
    """XXH3-128 of dtype, shape and values of one tensor."""
    spec = checkpoint[name]
    state = xxhash.xxh3_128(f"{spec.dtype.value} {spec.shape}".encode())
    state.update(np.ascontiguousarray(checkpoint.raw(name)).data)
    return state.hexdigest()


def _locate(
    told: Iterable[Mapping[str, JSON]], search: Iterable[StrPath]
) -> Iterator[Checkpoint | None]:
    entries = list(told)
    here = [_open_if_same(str(entry["path"]), str(entry["fingerprint"])) for entry in entries]
    wanted = [str(e["fingerprint"]) for e, c in zip(entries, here, strict=True) if c is None]
    elsewhere = find_by_fingerprint(wanted, search) if wanted else {}
    for entry, checkpoint in zip(entries, here, strict=True):
        yield checkpoint or elsewhere.get(str(entry["fingerprint"]))


def _open_if_same(path: str, fingerprint: str) -> Checkpoint | None:
    try:
        checkpoint = open_checkpoint(path)
    except (CheckpointError, OSError):
        return None
    return checkpoint if checkpoint.fingerprint == fingerprint else None


def _candidates(search: Iterable[StrPath]) -> Iterator[Path]:
    for place in map(Path, search):
        yield place
        if place.is_dir():
            yield from (path for path in sorted(place.rglob("*")) if not path.name.startswith("."))
