"""`stockpot average`."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit

__all__ = ["average"]


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
    base: options.Base = None,
    dtype: options.Dtype = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    max_memory: options.MaxMemory = None,
    threads: options.Threads = 2,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Average checkpoints: the uniform soup, or a weighted one.

    Reads every input once and writes the output once, block by block: memory does not grow with the
    models. The result does not depend on the order of arguments.

    \b
    stockpot average runs/*.safetensors -o soup.safetensors
    stockpot average a/ b/ c/ -o soup/ --weights 0.5,0.3,0.2
    stockpot average runs/ -o soup.pt --dtype bf16 --max-memory 1GB
    stockpot average llama-a/ llama-b/ -o soup/ --dry-run
    """
    shares = options.numbers(weights, "--weights")
    if normalise and shares is None:
        raise typer.BadParameter("there are no --weights to normalise", param_hint="--normalise")
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
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.recipes.uniform import Uniform

    recipe = Uniform(None if shares is None else tuple(shares), normalise)
    given = Ingredients(checkpoints, base=base, on_mismatch=on_mismatch, key=key)
    data, text = save(recipe.cook(given, dtype=kind), how)
    emit(data, text, as_json=json)
