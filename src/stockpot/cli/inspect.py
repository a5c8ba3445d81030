"""`stockpot inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot._types import format_bytes
from stockpot.cli import _options as options
from stockpot.cli._render import emit, progress_bar, table

if TYPE_CHECKING:
    from stockpot.analysis.geometry import Moves
    from stockpot.analysis.inspection import Inspection


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

    Reads headers, and the first values of some tensors to see whether the checkpoints come from one
    initialisation: averaging models that do not gives a broken model. Given their base it reads
    everything once and says how far each has moved from it.

    \b
    stockpot inspect model.safetensors
    stockpot inspect runs/*.safetensors --base base.safetensors
    stockpot inspect llama-a/ llama-b/ --json
    """
    from stockpot.analysis.inspection import inspect_checkpoints

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
    else:
        data["starts"] = [dataclasses.asdict(start) for start in found.starts]
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
    if not any(one.fingerprint for one in found.checkpoints):
        header, rows = header[:-1], [row[:-1] for row in rows]
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
    fit = "They fit: same names, shapes and dtypes."
    if found.moves is None:
        return _starts(found, fit)
    strangers = [
        one.path
        for one in found.moves.ingredients
        if one.same_initialisation.verdict == "different"
    ]
    if not strangers:
        return fit
    return (
        f"{fit} But {len(strangers)} of {len(found.moves.ingredients)} "
        f"most likely did not start from {found.moves.base}, and an average\n"
        f"with the others would be worthless: {', '.join(strangers)}"
    )


def _starts(found: Inspection, fit: str) -> str:
    """What can be said without a base: from the first values of some tensors."""
    verdicts = {one.path: one.same_initialisation for one in found.starts}
    others = [path for path, one in verdicts.items() if one.verdict == "different"]
    if others:
        lowest = min(verdicts[path].correlation or 0.0 for path in others)
        return (
            f"{fit} But {len(others)} of {len(verdicts) + 1} most likely\n"
            f"did not start where the first did (correlation {lowest:.2f}; near 1 for children\n"
            "of one start). They share no basin, and an average with it would be worthless:\n"
            f"{', '.join(others)}"
        )
    if all(one.verdict == "shared" for one in verdicts.values()):
        return (
            f"{fit} By their first values they seem to share an\n"
            "initialisation; give --base to see how far each has moved from it."
        )
    return (
        f"{fit} Whether they share an initialisation, without\n"
        "which an average is worthless, is not clear from their first values: give --base."
    )


def _moves(moves: Moves) -> str:
    """Distances from the base, the evidence on a common start, and angles between the moves."""
    # Paths in full are above; as headers of columns they would be wider than any screen.
    labels = _labels([one.path for one in moves.ingredients])
    rows = [
        [label, _number(one.distance), one.same_initialisation.text]
        for label, one in zip(labels, moves.ingredients, strict=True)
    ]
    width = max(len(label) for label in ["ingredient", *labels])
    lines = [
        f"distance from {moves.base}, relative, over {moves.tensors} tensors:",
        table(["ingredient", "distance"], [row[:2] for row in rows]),
    ]
    layers = list(moves.ingredients[0].layers) if moves.ingredients else []
    if len(layers) > 1:
        columns = [one.layers for one in moves.ingredients]
        by_layer = [[layer, *(_number(c.get(layer)) for c in columns)] for layer in layers]
        lines += ["", table(["layer", *labels], by_layer)]
    if moves.angles:
        lines += ["", "angles between moves, in degrees:", _angles(moves, labels)]
    lines += ["", *(f"{row[0]:<{width}}  {row[2]}" for row in rows)]
    return "\n".join(lines)


def _angles(moves: Moves, labels: Sequence[str]) -> str:
    """The upper triangle of the angles, which come pair by pair in order."""
    angles = iter(moves.angles)
    n = len(labels)
    rows = [
        [labels[i], *("" if j <= i else _number(next(angles).degrees) for j in range(1, n))]
        for i in range(n - 1)
    ]
    return table(["", *labels[1:]], rows)


def _labels(paths: Sequence[str]) -> list[str]:
    """`paths` without the folder and the suffix that they share, as long as that is unambiguous.

    >>> _labels(["runs/run-0.pt", "runs/run-1.pt"]), _labels(["a/model.pt", "b/model.pt"])
    (['run-0', 'run-1'], ['a/model', 'b/model'])
    >>> _labels(["runs/run-0.pt"]), _labels(["x.pt", "x.bin"])
    (['run-0'], ['x.pt', 'x.bin'])
    >>> _labels([".", "../a"])
    ['.', '../a']
    """
    given = [Path(path) for path in paths]
    if not all(path.name for path in given):  # "." and "/" have no name to shorten
        return list(paths)
    shared = len({path.parent for path in given}) == 1
    alike = len({path.suffix for path in given}) == 1
    return [
        str((Path(path.name) if shared else path).with_suffix("" if alike else path.suffix))
        for path in given
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
