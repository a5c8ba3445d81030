"""`stockpot evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit, table
from stockpot.cli._scoring import evaluating, program, score_table


def evaluate(
    checkpoints: options.Checkpoints,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Also the mean of the logits of all.")
    ] = False,
    key: options.Key = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    no_journal: options.NoJournal = False,
    json: options.Json = False,
) -> None:
    """Score checkpoints on every split and compare each two.

    Scores come with 95 % intervals. Pairs are compared on the same examples: exact McNemar for
    accuracy, sign flips otherwise.

    \b
    stockpot evaluate soup.safetensors runs/ --task handwriting
    stockpot evaluate a.pt b.pt --task my_task.py:task --ensemble --json
    """
    runs = program(command, None, direction, eval_timeout)
    from stockpot.mixing.ingredients import open_sources
    from stockpot.recipes.ensembles import compare_models

    models = open_sources(checkpoints, key=key)
    with evaluating(
        task,
        cache=cache,
        no_journal=no_journal,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        program=runs,
    ) as (_, evaluator):
        found = compare_models(evaluator, models, with_ensemble=ensemble)
    data: dict[str, Any] = found.to_json()
    emit(data, _text(data), as_json=json)


def _text(data: dict[str, Any]) -> str:
    rows = dict(data["scores"])
    if data["ensemble"] is not None:
        rows["ensemble"] = data["ensemble"]
    parts = [score_table(rows)]
    pairs = [[f"{p['a']} - {p['b']}", p["split"], *_difference(p)] for p in data["pairs"]]
    if pairs:
        parts.append(table(["pair", "split", "difference", "95 % interval", "p"], pairs))
    return "\n\n".join(parts)


def _difference(pair: dict[str, Any]) -> list[str]:
    if pair["low"] is None:
        return [f"{pair['difference']:+.4f}", "-", "-"]
    interval = f"{pair['low']:+.4f} to {pair['high']:+.4f}"
    return [f"{pair['difference']:+.4f}", interval, f"{pair['p_value']:.3g}"]
