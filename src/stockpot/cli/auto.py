"""`stockpot auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._scoring import score_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


def _text(told: dict[str, Any]) -> str:
    scores = {row["recipe"]: row["scores"] for row in told["table"]}
    extra = {row["recipe"]: [str(row["ingredients"]), _p(row)] for row in told["table"]}
    table = score_table(scores, "recipe", extra=("ingredients", "p"), cells=extra)
    return "\n".join([table, "", f"chosen: {told['chosen']}", *_reasons(told)])


def _p(row: dict[str, Any]) -> str:
    if row["p_value"] is None:
        return "-"
    return f"{row['p_value']:.3g}" + (" (within noise)" if row["within_noise"] else "")


def _reasons(told: dict[str, Any]) -> list[str]:
    return [f"{reason['text']}. {reason['remedy']}" for reason in told["reasons"]]


@cooks(_text)
def auto(
    seed: int,
    prefer: Annotated[
        Literal["score", "simple"],
        typer.Option("--prefer", help="The best score, or the simplest recipe within noise of it."),
    ] = "score",
    accept: Annotated[
        Literal["ge", "gt"],
        typer.Option("--accept", help="Of greedy and pruned: ties or not."),
    ] = "ge",
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="GRID", help="Points of WiSE-FT, with --base.")
    ] = "0:1:0.05",
    learned: Annotated[
        bool, typer.Option("--learned/--no-learned", help="Fit a learned soup too.")
    ] = True,
    ensembles: Annotated[
        bool, typer.Option("--ensembles/--no-ensembles", help="Score them too; never chosen.")
    ] = True,
) -> Recipe:
    """Try every recipe and keep the best on held-out data.

    Shows best single, uniform, WiSE-FT (with --base), greedy, pruned and learned soups and the
    ensembles in one table. p is that of no difference to the best single checkpoint on the data
    that chose.

    \b
    stockpot auto runs/ --task handwriting --base base.safetensors -o soup.safetensors
    stockpot auto runs/ --task my_task.py:task -o soup/ --prefer simple
    """
    grid = options.grid(alphas, "--alphas") or ()
    from stockpot.recipes.auto import Auto

    return Auto(
        prefer=prefer,
        accept=accept,
        alphas=grid,
        learned=learned,
        ensembles=ensembles,
        seed=seed,
    )
