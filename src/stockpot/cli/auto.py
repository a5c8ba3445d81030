"""`stockpot auto`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program, score_table

__all__ = ["auto"]


def auto(
    checkpoints: options.Checkpoints,
    output: options.Output,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    base: options.Base = None,
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
    ensembles: Annotated[
        bool, typer.Option("--ensembles/--no-ensembles", help="Score them too; never chosen.")
    ] = True,
    choose_on: options.ChooseOn = None,
    dtype: options.Dtype = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    threads: options.Threads = 2,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Try every recipe and keep the best on held-out data.

    Shows best single, uniform, WiSE-FT (with --base), greedy and pruned soups and the ensembles in
    one table. p is that of no difference to the best single checkpoint on the data that chose.

    \b
    stockpot auto runs/ --task handwriting --base base.safetensors -o soup.safetensors
    stockpot auto runs/ --task my_task.py:task -o soup/ --prefer simple
    """
    grid = options.grid(alphas, "--alphas") or ()
    kind = options.to_dtype(dtype)
    how = saving(
        output,
        force=force,
        threads=threads,
        config_from=config_from,
        max_shard_size=max_shard_size,
    )
    runs = program(command, eval_test, direction, eval_timeout)
    check_output(how)
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.recipes.auto import Auto

    given = Ingredients(checkpoints, base=base, on_mismatch=on_mismatch, key=key)
    recipe = Auto(prefer, accept, grid, ensembles, seed)
    with evaluating(
        task,
        cache=cache,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        program=runs,
    ) as (found, evaluator):
        soup = recipe.cook(given, found, evaluator=evaluator, choose_on=choose_on, dtype=kind)
    told: dict[str, Any] = soup.to_json()
    data, text = save(soup, how)
    emit({**told, **data}, f"{_text(told)}\n\n{text}", as_json=json)


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
