"""`stockpot greedy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._render import table
from stockpot.cli._scoring import score_table, selection_lines, steps_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


def _show(told: dict[str, Any]) -> str:
    parts = [
        steps_table(told),
        score_table({"greedy": told["scores"]}),
        "\n".join(selection_lines(told)),
        _random_orders(told.get("random_orders")),
        _curve(told.get("ingredients_curve", [])),
    ]
    return "\n\n".join(part for part in parts if part)


def _random_orders(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [[name, *(f"{value:.4f}" for value in found[name].values())] for name in ("mean", "sd")]
    kept = ", ".join(str(len(selected)) for selected in found["selected"])
    title = f"{found['orders']} random orders"
    return f"{table([title, *found['mean']], rows)}\ningredients kept: {kept}"


def _curve(points: list[dict[str, Any]]) -> str:
    if not points:
        return ""
    rows = [
        [str(p["ingredients"]), *(_spread(p["mean"][s], p["sd"][s]) for s in p["mean"])]
        for p in points
    ]
    return table(["mean of", *points[0]["mean"]], rows)


def _spread(mean: float, sd: float | None) -> str:
    return f"{mean:.4f}" + ("" if sd is None else f" (sd {sd:.4f})")


@cooks(_show)
def greedy(
    seed: int,
    order: Annotated[
        Literal["score", "random", "given"], typer.Option("--order", help="In which to try them.")
    ] = "score",
    accept: Annotated[
        Literal["ge", "gt"], typer.Option("--accept", help="Keep ties (ge) or not (gt).")
    ] = "ge",
    min_gain: Annotated[
        float, typer.Option("--min-gain", help="Least gain in score to keep a candidate.")
    ] = 0.0,
    early_rejection: options.EarlyRejection = True,
    selection_optimism: options.SelectionOptimism = "scored",
    random_orders: Annotated[
        int,
        typer.Option(
            "--random-orders", metavar="N", min=0, help="Also try N random orders: mean and sd."
        ),
    ] = 0,
    curve: Annotated[
        int,
        typer.Option(
            "--curve",
            metavar="N",
            min=0,
            help="Also score means of 1, 2, … checkpoints, in N random orders.",
        ),
    ] = 0,
) -> Recipe:
    """Greedy soup: add what does not lower the held-out score.

    Tries the checkpoints one after the other, best first. Chooses on the task's held-out split and
    reports on the others. Everything scored is kept in a journal, so a killed command continues
    where it was.

    \b
    stockpot greedy runs/ --task handwriting -o soup.safetensors
    stockpot greedy a.pt b.pt c.pt --task my_task.py:task -o soup.pt --accept gt
    stockpot greedy runs/ --eval "python score.py {checkpoint}" -o soup.safetensors
    stockpot greedy runs/ --task my_task.py:task -o soup.pt --random-orders 3 --curve 3
    """
    from stockpot.recipes.greedy import Greedy

    return Greedy(
        order=order,
        accept=accept,
        min_gain=min_gain,
        early_rejection=early_rejection,
        seed=seed,
        optimism=selection_optimism,
        random_orders=random_orders,
        curve=curve,
    )
