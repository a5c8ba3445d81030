"""`stockpot average`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program, score_table


def average(
    checkpoints: options.Checkpoints,
    output: options.Output,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="1,2,3", help="One coefficient each, in order; default: equal."
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide the weights by their sum.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            "--top", metavar="N", min=1, help="Only the N best on held-out data; needs --task."
        ),
    ] = None,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    choose_on: options.ChooseOn = None,
    base: options.Base = None,
    dtype: options.Dtype = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    max_memory: options.MaxMemory = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    workers: options.Workers = 1,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    no_journal: options.NoJournal = False,
    threads: options.Threads = 2,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Average checkpoints: the uniform soup, or a weighted one.

    Reads every input once and writes the output once, block by block: memory does not grow with the
    models. The result does not depend on the order of arguments. With --task (or --eval) it is also
    scored, and --top can choose what is averaged.

    \b
    stockpot average runs/*.safetensors -o soup.safetensors
    stockpot average a/ b/ c/ -o soup/ --weights 0.5,0.3,0.2
    stockpot average runs/ -o soup.pt --dtype bf16 --max-memory 1GB
    stockpot average llama-a/ llama-b/ -o soup/ --dry-run
    stockpot average runs/ -o soup.safetensors --top 5 --task my_task.py:task
    """
    shares = options.numbers(weights, "--weights")
    if normalise and shares is None:
        raise typer.BadParameter("there are no --weights to normalise", param_hint="--normalise")
    if top is not None and weights is not None:
        raise typer.BadParameter("--weights say already which are averaged", param_hint="--top")
    runs = program(command, eval_test, direction, eval_timeout)
    scored = task is not None or runs is not None
    if top is not None and not scored:
        raise typer.BadParameter("give a --task to choose them by", param_hint="--top")
    kind = options.to_dtype(dtype)
    how = saving(
        output,
        force=force,
        dry_run=dry_run,
        threads=threads,
        max_memory=max_memory,
        config_from=config_from,
        max_shard_size=max_shard_size,
    )
    check_output(how)
    from stockpot.mixing.ingredients import Ingredients
    from stockpot.recipes.simple import Uniform

    recipe = Uniform(
        weights=None if shares is None else tuple(shares), normalise=normalise, top=top
    )
    given = Ingredients(checkpoints, base=base, on_mismatch=on_mismatch, key=key)
    if not scored:
        data, text = save(recipe.cook(given, dtype=kind), how)
        emit(data, text, as_json=json)
        return
    with evaluating(
        task,
        cache=cache,
        no_journal=no_journal,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        program=runs,
    ) as (found, evaluator):
        soup = recipe.cook(given, found, evaluator=evaluator, choose_on=choose_on, dtype=kind)
    told: dict[str, Any] = soup.to_json()
    data, text = save(soup, how)
    scores = score_table({"average": told["scores"]})
    emit({**told, **data}, f"{scores}\n\n{text}", as_json=json)
