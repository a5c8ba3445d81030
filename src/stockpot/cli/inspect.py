"""`stockpot inspect`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot._types import format_bytes
from stockpot.cli import _options as options
from stockpot.cli._render import emit, progress_bar, table

if TYPE_CHECKING:
    from stockpot.diagnostics import Inspection, Moves

__all__ = ["inspect"]


def inspect(
    checkpoints: options.Checkpoints,
    base: options.Base = None,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Make content hashes that are not known yet.")
    ] = False,
    key: options.Key = None,
    json: options.Json = False,
) -> None:
    """Show what checkpoints hold and whether they will average.

    Only headers are read, unless --base or --fingerprint asks for more. With --base it says how far
    each has moved from it, and whether it comes from it at all: averaging models that do not share
    their initialisation gives a broken model.

    \b
    stockpot inspect model.safetensors
    stockpot inspect runs/*.safetensors --base base.safetensors
    stockpot inspect llama-a/ llama-b/ --json
    """
    from stockpot.diagnostics import inspect_checkpoints

    with progress_bar() as progress:
        found = inspect_checkpoints(
            checkpoints, base=base, key=key, fingerprints=fingerprint, progress=progress
        )
    emit(_data(found), _text(found), as_json=json)


def _data(found: Inspection) -> dict[str, Any]:
    data: dict[str, Any] = {
        "checkpoints": [dataclasses.asdict(one) for one in found.checkpoints],
        "compatible": found.compatible,
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
    }
    if found.moves is not None:
        data["moves"] = dataclasses.asdict(found.moves)
    return data


def _text(found: Inspection) -> str:
    rows = [
        [
            one.path,
            one.format,
            str(one.tensors),
            f"{one.parameters:,}",
            format_bytes(one.bytes),
            " ".join(one.dtypes),
            one.fingerprint or "",
        ]
        for one in found.checkpoints
    ]
    header = ["checkpoint", "format", "tensors", "parameters", "size", "dtypes", "fingerprint"]
    parts = [table(header, rows)]
    parts += [
        "\n".join(f"{one.path}: {n}" for n in one.notes) for one in found.checkpoints if one.notes
    ]
    if found.moves is not None:
        parts.append(_moves(found.moves))
    if found.message:
        parts.append(found.message)
    elif found.compatible is not None:
        parts.append(_verdict(found))
    return "\n\n".join(parts)


def _verdict(found: Inspection) -> str:
    if found.moves is not None:
        return "They fit: same names, shapes and dtypes."
    return (
        "They fit: same names, shapes and dtypes. Whether they share an initialisation, without\n"
        "which an average is worthless, is not in the headers: give --base."
    )


def _moves(moves: Moves) -> str:
    """Distances from the base, the evidence on a common start, and angles between the moves."""
    rows = [[one.path, _number(one.distance)] for one in moves.ingredients]
    lines = [
        f"distance from {moves.base}, relative, over {moves.tensors} tensors:",
        table(["ingredient", "distance"], rows),
    ]
    layers = list(moves.ingredients[0].layers) if moves.ingredients else []
    if len(layers) > 1:
        columns = [one.layers for one in moves.ingredients]
        by_layer = [[layer, *(_number(c.get(layer)) for c in columns)] for layer in layers]
        lines += ["", table(["layer", *(one.path for one in moves.ingredients)], by_layer)]
    if moves.angles:
        pairs = [[f"{a.a} - {a.b}", _number(a.degrees)] for a in moves.angles]
        lines += ["", table(["angle between moves", "degrees"], pairs)]
    lines += ["", *(f"{one.path}: {one.same_initialisation.text}" for one in moves.ingredients)]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
