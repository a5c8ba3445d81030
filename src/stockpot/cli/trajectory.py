"""`stockpot trajectory`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit, table
from stockpot.cli._scoring import evaluating, score_table

__all__ = ["trajectory"]

_SHOWN = 10


def trajectory(
    checkpoints: options.Checkpoints,
    task: options.Task,
    output: options.Output,
    starts: Annotated[
        str | None,
        typer.Option("--starts", metavar="0,4", help="Where windows begin; default: up to eight."),
    ] = None,
    strides: Annotated[
        str, typer.Option("--strides", metavar="1,2", help="Steps between checkpoints averaged.")
    ] = "1",
    decays: Annotated[
        str | None,
        typer.Option("--decays", metavar="0.5,0.8", help="Of exponential averages."),
    ] = "0.5,0.8",
    choose_on: options.ChooseOn = None,
    dtype: options.Dtype = None,
    key: options.Key = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    threads: options.Threads = 2,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Average the best window of one run's checkpoints, given in the order they were saved.

    Scores, on the held-out split, windows from each start at every length: their mean, averages
    like a learning rate decayed as 1 - sqrt, and exponential averages. Every file is read once.

    \b
    stockpot trajectory run/step-*.safetensors --task handwriting -o best.safetensors
    stockpot trajectory ckpt-1.pt ckpt-2.pt ckpt-3.pt --task my.py:task -o best.pt --strides 1,2
    """
    kind = options.to_dtype(dtype)
    how = saving(output, force=force, threads=threads)
    begins, steps = _integers(starts, "--starts"), _integers(strides, "--strides")
    means = options.numbers(decays or None, "--decays")
    check_output(how)
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.recipes.trajectory import Trajectory

    given = Ingredients(checkpoints, key=key)
    recipe = Trajectory(begins, steps or (1,), tuple(means or ()))
    with evaluating(
        task, cache=cache, device=device, precision=precision, batch_size=batch_size, seed=seed
    ) as (found, evaluator):
        soup = recipe.cook(given, found, evaluator=evaluator, choose_on=choose_on, dtype=kind)
    told: dict[str, Any] = soup.to_json()
    data, text = save(soup, how)
    windows = _windows(told["curve"], lower=told["direction"] == "min")
    scores = score_table({"trajectory": told["scores"]})
    emit({**told, **data}, f"{windows}\n\n{scores}\n\n{text}", as_json=json)


def _integers(text: str | None, option: str) -> tuple[int, ...] | None:
    found = options.numbers(text, option)
    if found is None:
        return None
    if any(value != int(value) for value in found):
        raise typer.BadParameter(f"{text!r} holds numbers that are not whole", param_hint=option)
    return tuple(int(value) for value in found)


def _windows(curve: list[dict[str, Any]], *, lower: bool) -> str:
    """The best windows, best first."""
    ordered = sorted(curve, key=lambda point: point["score"] if lower else -point["score"])
    rows = [
        [
            point["kind"] if point["decay"] is None else f"{point['kind']} {point['decay']:g}",
            str(point["start"]),
            str(point["stride"]),
            str(point["count"]),
            f"{point['score']:.4f}",
        ]
        for point in ordered[:_SHOWN]
    ]
    return table(["window", "start", "stride", "count", "held-out"], rows)
