"""`stockpot greedy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._scoring import score_table, steps_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe

__all__ = ["greedy"]


def _show(told: dict[str, Any]) -> str:
    return f"{steps_table(told)}\n\n{score_table({'greedy': told['scores']})}"


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
) -> Recipe:
    """Greedy soup: add what does not lower the held-out score.

    Tries the checkpoints one after the other, best first. Chooses on the task's held-out split and
    reports on the others. Everything scored is kept in a journal, so a killed command continues
    where it was.

    \b
    stockpot greedy runs/ --task handwriting -o soup.safetensors
    stockpot greedy a.pt b.pt c.pt --task my_task.py:task -o soup.pt --accept gt
    stockpot greedy runs/ --eval "python score.py {checkpoint}" -o soup.safetensors
    """
    from stockpot.recipes.greedy import Greedy

    return Greedy(order, accept, min_gain, early_rejection, seed)
