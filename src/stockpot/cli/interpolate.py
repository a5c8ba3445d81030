"""`stockpot interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program, score_table

if TYPE_CHECKING:
    from stockpot.recipes.soup import Soup

__all__ = ["interpolate"]


def interpolate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="What TUNED was fine-tuned from.")],
    tuned: Annotated[
        list[str],
        typer.Argument(metavar="TUNED", help="Fine-tuned checkpoints; each gets its own output."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A .safetensors or .pt file, else a model folder; for several TUNED the folder "
            "of their outputs, named like them.",
        ),
    ],
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="0 is BASE, 1 is TUNED; 0.5 where nothing better is known."),
    ] = None,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="GRID", help="Points of the curve; 0 and 1 belong.")
    ] = "0:1:0.05",
    choose_on: options.ChooseOn = None,
    dtype: options.Dtype = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    max_memory: options.MaxMemory = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    no_journal: options.NoJournal = False,
    threads: options.Threads = 2,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Mix a base with its fine-tuned child (WiSE-FT).

    Writes (1 - alpha) BASE + alpha TUNED: with --alpha one point; with --task the whole curve is
    scored, and the point that is best on held-out data is written.

    \b
    stockpot interpolate base.safetensors tuned.safetensors --alpha 0.5 -o mix.safetensors
    stockpot interpolate base.safetensors tuned.safetensors --task handwriting -o mix.safetensors
    stockpot interpolate llama/ llama-tuned/ --alpha 0.7 -o mixed/
    """
    runs = program(command, eval_test, direction, eval_timeout)
    scored = task is not None or runs is not None
    if alpha is None and not scored:
        raise typer.BadParameter("give --alpha, or a --task to choose it by", param_hint="--alpha")
    grid = options.grid(alphas, "--alphas") or ()
    kind = options.to_dtype(dtype)
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.checkpoint.opening import expand_paths
    from stockpot.recipes.wise_ft import WiseFT

    paths = expand_paths(tuned)
    hows = {
        path: saving(
            out,
            force=force,
            dry_run=dry_run,
            threads=threads,
            max_memory=max_memory,
            config_from=config_from,
            max_shard_size=max_shard_size,
        )
        for path, out in _outputs(paths, output).items()
    }
    for how in hows.values():
        check_output(how)
    recipe = WiseFT(alpha, grid)
    given = {
        path: Ingredients([path], base=base, on_mismatch=on_mismatch, key=key) for path in paths
    }
    if not scored:
        soups = {path: recipe.cook(one, dtype=kind) for path, one in given.items()}
    else:
        with evaluating(
            task,
            cache=cache,
            no_journal=no_journal,
            device=device,
            precision=precision,
            batch_size=batch_size,
            seed=seed,
            program=runs,
        ) as (found, evaluator):
            soups = {
                path: recipe.cook(one, found, evaluator=evaluator, choose_on=choose_on, dtype=kind)
                for path, one in given.items()
            }
    shown = {path: _shown(soup, *save(soup, hows[path])) for path, soup in soups.items()}
    text = "\n\n".join(text for _, text in shown.values())
    if len(shown) == 1:
        emit(next(iter(shown.values()))[0], text, as_json=json)
    else:
        emit({"curves": {path: data for path, (data, _) in shown.items()}}, text, as_json=json)


def _outputs(paths: list[str], output: str) -> dict[str, str]:
    if len(paths) == 1:
        return {paths[0]: output}
    if Path(output).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise typer.BadParameter(
            f"{len(paths)} TUNED need a folder for their outputs, and {output} names a file",
            param_hint="--output",
        )
    # Lightning's files are read, and plain ones written.
    outputs = {path: str(Path(output) / Path(path).name.replace(".ckpt", ".pt")) for path in paths}
    if len(set(outputs.values())) < len(paths):
        raise typer.BadParameter(
            "several TUNED have the same name, and their outputs would too: interpolate them apart",
            param_hint="TUNED",
        )
    return outputs


def _shown(soup: Soup, saved: dict[str, Any], text: str) -> tuple[dict[str, Any], str]:
    """One curve as JSON and as text."""
    told: dict[str, Any] = soup.to_json()
    chosen = told.get("chosen", {"alpha": told["alpha"], "scores": told["scores"] or None})
    data = {**told, "curve": told.get("curve"), "chosen": chosen, **saved}
    rows = {f"{point['alpha']:g}": point["scores"] for point in data["curve"] or []}
    if rows:
        text = f"{score_table(rows, 'alpha')}\n\nchosen: alpha {chosen['alpha']:g}\n\n{text}"
    return data, text
