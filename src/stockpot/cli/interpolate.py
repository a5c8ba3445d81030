"""`stockpot interpolate`."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import SaveOptions, save
from stockpot.cli._render import emit

__all__ = ["interpolate"]


def interpolate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="What TUNED was fine-tuned from.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned checkpoint.")],
    output: options.Output,
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="0 is BASE, 1 is TUNED; 0.5 where nothing better is known."),
    ],
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
    """Mix a base with its fine-tuned child (WiSE-FT): (1 - alpha) BASE + alpha TUNED.

    \b
    stockpot interpolate zero-shot.safetensors tuned.safetensors --alpha 0.5 -o mix.safetensors
    stockpot interpolate llama/ llama-tuned/ --alpha 0.7 -o mixed/
    """
    how = SaveOptions(
        threads=threads,
        max_memory=options.size(max_memory, "--max-memory"),
        config_from=config_from,
        max_shard_bytes=options.size(max_shard_size, "--max-shard-size"),
        force=force,
        dry_run=dry_run,
    )
    kind = options.to_dtype(dtype)
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.mixing.coefficients import Coefficients
    from stockpot.mixing.mixture import Mixture

    given = Ingredients([base, tuned], on_mismatch=on_mismatch, key=key)
    mixture = Mixture(given, Coefficients.per_model([1 - alpha, alpha]), dtype=kind)
    data, text = save(mixture, output, how)
    emit({**data, "alpha": alpha}, text, as_json=json)
