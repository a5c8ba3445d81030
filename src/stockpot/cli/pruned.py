"""`stockpot pruned`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._scoring import score_table, selection_lines, steps_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


def _show(told: dict[str, Any]) -> str:
    steps = steps_table(told, accepted="taken out", rejected="kept")
    scores = score_table({"pruned": told["scores"]})
    return "\n\n".join([steps, scores, "\n".join(selection_lines(told))])


@cooks(_show)
def pruned(
    accept: Annotated[
        Literal["ge", "gt"],
        typer.Option("--accept", help="Take out what makes no difference (ge), or not (gt)."),
    ] = "ge",
    min_gain: Annotated[
        float, typer.Option("--min-gain", help="Least gain in score to take one out.")
    ] = 0.0,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Walks through all, at most.")] = 3,
    early_rejection: options.EarlyRejection = True,
    selection_optimism: options.SelectionOptimism = "scored",
) -> Recipe:
    """Pruned soup: take out what the held-out score does not miss.

    Starts from all and walks from the worst to the second best, until nothing changes. A
    step is "accepted" when its candidate was taken out.

    \b
    stockpot pruned runs/ --task handwriting -o soup.safetensors
    """
    from stockpot.recipes.greedy import Pruned

    return Pruned(
        accept=accept,
        min_gain=min_gain,
        n_passes=passes,
        early_rejection=early_rejection,
        optimism=selection_optimism,
    )
