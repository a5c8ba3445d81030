"""`stockpot trajectory`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._render import table
from stockpot.cli._scoring import score_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


_SHOWN = 10


def _integers(text: str | None, option: str) -> tuple[int, ...] | None:
    found = options.numbers(text, option)
    if found is None:
        return None
    if any(value != int(value) for value in found):
        raise typer.BadParameter(f"{text!r} holds numbers that are not whole", param_hint=option)
    return tuple(int(value) for value in found)


def _windows(curve: list[dict[str, Any]], *, lower: bool) -> str:
    """The best windows, best first."""
    ordered = sorted(curve, key=lambda point: point["score"] if lower else -point["score"])
    rows = [
        [
            point["kind"] if point["decay"] is None else f"{point['kind']} {point['decay']:g}",
            str(point["start"]),
            str(point["stride"]),
            str(point["count"]),
            f"{point['score']:.4f}",
        ]
        for point in ordered[:_SHOWN]
    ]
    return table(["window", "start", "stride", "count", "held-out"], rows)


def _show(told: dict[str, Any]) -> str:
    windows = _windows(told["curve"], lower=told["direction"] == "min")
    return f"{windows}\n\n{score_table({'trajectory': told['scores']})}"


@cooks(_show, programs=False, without=("base", "on_mismatch"))
def trajectory(
    starts: Annotated[
        str | None,
        typer.Option("--starts", metavar="0,4", help="Where windows begin; default: up to eight."),
    ] = None,
    strides: Annotated[
        str, typer.Option("--strides", metavar="1,2", help="Steps between checkpoints averaged.")
    ] = "1",
    decays: Annotated[
        str | None,
        typer.Option("--decays", metavar="0.5,0.8", help="Of exponential averages."),
    ] = "0.5,0.8",
) -> Recipe:
    """Average the best window of one run's checkpoints.

    Give them in the order they were saved. Scores, on the held-out split, windows from each start
    at every length: their mean, averages like a learning rate decayed as 1 - sqrt, and exponential
    averages. Every file is read once.

    \b
    stockpot trajectory run/step-*.safetensors --task handwriting -o best.safetensors
    stockpot trajectory ckpt-1.pt ckpt-2.pt ckpt-3.pt --task my.py:task -o best.pt --strides 1,2
    """
    begins, steps = _integers(starts, "--starts"), _integers(strides, "--strides")
    means = options.numbers(decays or None, "--decays")
    from stockpot.recipes.trajectory import Trajectory

    return Trajectory(starts=begins, strides=steps or (1,), decays=tuple(means or ()))
