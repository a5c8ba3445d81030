"""`stockpot pruned`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program, score_table, steps_table

__all__ = ["pruned"]


def pruned(
    checkpoints: options.Checkpoints,
    output: options.Output,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    accept: Annotated[
        Literal["ge", "gt"],
        typer.Option("--accept", help="Take out what makes no difference (ge), or not (gt)."),
    ] = "ge",
    min_gain: Annotated[
        float, typer.Option("--min-gain", help="Least gain in score to take one out.")
    ] = 0.0,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Walks through all, at most.")] = 3,
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
    """Pruned soup: take out what the held-out score does not miss.

    Starts from all and walks from the worst to the second best, until nothing changes. A
    step is "accepted" when its candidate was taken out.

    \b
    stockpot pruned runs/ --task handwriting -o soup.safetensors
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
    from stockpot.recipes.pruned import Pruned

    given = Ingredients(checkpoints, base=base, on_mismatch=on_mismatch, key=key)
    recipe = Pruned(accept, min_gain, passes, early_rejection)
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
    steps = steps_table(told, accepted="taken out", rejected="kept")
    scores = score_table({"pruned": told["scores"]})
    emit({**told, **data}, f"{steps}\n\n{scores}\n\n{text}", as_json=json)
