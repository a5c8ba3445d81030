"""`stockpot greedy`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program, score_table, steps_table

__all__ = ["greedy"]


def greedy(
    checkpoints: options.Checkpoints,
    output: options.Output,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
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
    choose_on: options.ChooseOn = None,
    base: options.Base = None,
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
    """Greedy soup: add what does not lower the held-out score.

    Tries the checkpoints one after the other, best first. Chooses on the task's held-out split and
    reports on the others. Everything scored is kept in a journal, so a killed command continues
    where it was.

    \b
    stockpot greedy runs/ --task handwriting -o soup.safetensors
    stockpot greedy a.pt b.pt c.pt --task my_task.py:task -o soup.pt --accept gt
    stockpot greedy runs/ --eval "python score.py {checkpoint}" -o soup.safetensors
    """
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
    from stockpot.recipes.greedy import Greedy

    given = Ingredients(checkpoints, base=base, on_mismatch=on_mismatch, key=key)
    recipe = Greedy(order, accept, min_gain, early_rejection, seed)
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
    steps = steps_table(told)
    scores = score_table({"greedy": told["scores"]})
    emit({**told, **data}, f"{steps}\n\n{scores}\n\n{text}", as_json=json)
