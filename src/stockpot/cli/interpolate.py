"""`stockpot interpolate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit, note, table
from stockpot.cli._scoring import evaluating, program, score_table

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.recipes.soup import Soup


def interpolate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="What TUNED was fine-tuned from.")],
    tuned: Annotated[
        list[str],
        typer.Argument(
            metavar="TUNED", help="Fine-tuned checkpoints or soups; each gets its own output."
        ),
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
        str | None,
        typer.Option(
            "--alphas",
            metavar="GRID",
            help="Points of the curve; 0, 0.5 and 1 belong. Default 0:1:0.05, or none with "
            "--alpha.",
        ),
    ] = None,
    objective: Annotated[
        Literal["held-out", "both"],
        typer.Option("--objective", help="both: the mean over all held-out splits of the task."),
    ] = "held-out",
    choose_on: options.ChooseOn = None,
    by: Annotated[
        Literal["model", "layer"],
        typer.Option("--by", help="layer: layers may then move off the chosen alpha."),
    ] = "model",
    layer_alpha: Annotated[
        list[str] | None,
        typer.Option(
            "--layer-alpha", metavar="PATTERN=ALPHA", help="Tensors that always have this alpha."
        ),
    ] = None,
    keep_head: Annotated[
        bool,
        typer.Option(
            "--keep-head",
            help="Interpolate what the two share; a head that BASE does not have is TUNED's.",
        ),
    ] = False,
    fisher: Annotated[
        bool,
        typer.Option("--fisher", help="Weight every element by how much it matters to either."),
    ] = False,
    alternatives: Annotated[
        bool,
        typer.Option("--alternatives", help="Also score, to compare, what else needs no training."),
    ] = False,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="DIR", help="Write a record for stockpot report."),
    ] = None,
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
    """Mix a base with its fine-tuned child (WiSE-FT).

    Writes (1 - alpha) BASE + alpha TUNED: with --alpha one point; with --task the whole curve is
    scored, and the point that is best on held-out data is written. Beside it stand what each
    column would have chosen, alpha 0.5, and the ensemble of the two models' outputs.

    \b
    stockpot interpolate base.safetensors tuned.safetensors --alpha 0.5 -o mix.safetensors
    stockpot interpolate base.safetensors tuned.safetensors --task handwriting -o mix.safetensors
    stockpot interpolate base.safetensors runs/ --task handwriting -o mixed/ --report mixed/report
    stockpot interpolate llama/ llama-tuned/ --alpha 0.7 -o mixed/
    """
    runs = program(command, eval_test, direction, eval_timeout)
    scored = task is not None or runs is not None
    if alpha is None and not scored:
        raise typer.BadParameter("give --alpha, or a --task to choose it by", param_hint="--alpha")
    draws = scored and (alpha is None or alphas is not None)
    if report is not None and not draws:
        raise typer.BadParameter(
            "a report shows a curve: give --task, and --alphas if alpha is given",
            param_hint="--report",
        )
    grid = options.grid(alphas, "--alphas")
    fixed = _fixed(layer_alpha or [])
    kind = options.to_dtype(dtype)
    from stockpot.formats.opening import expand_paths
    from stockpot.mixing.ingredients import open_sources
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
    if report is not None:
        _check_report(report, force=force)
    recipe = WiseFT(
        alpha=alpha,
        alphas=grid if scored else None,
        objective=objective,
        by=by,
        layer_alphas=fixed,
        keep_head=keep_head,
        fisher=fisher,
        alternatives=alternatives,
        seed=seed,
    )
    start, *models = open_sources([base, *paths], key=key)
    how_to: dict[str, Any] = {"on_mismatch": on_mismatch, "dtype": kind}
    found: Task | None = None
    if not scored:
        soups = recipe.cook_each(models, base=start, **how_to)
    else:
        with evaluating(
            task,
            cache=cache,
            no_journal=no_journal,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            program=runs,
        ) as (found, evaluator):
            soups = recipe.cook_each(
                models, found, base=start, evaluator=evaluator, choose_on=choose_on, **how_to
            )
    shown = {
        path: _shown(soup, *save(soup, hows[path])) for path, soup in zip(paths, soups, strict=True)
    }
    if report is not None and found is not None:
        _write_report(report, {path: data for path, (data, _) in shown.items()}, base, found)
    if len(shown) == 1:
        data, text = next(iter(shown.values()))
        emit(data, text, as_json=json)
    else:
        text = "\n\n".join(f"{path}\n\n{one}" for path, (_, one) in shown.items())
        emit({"curves": {path: data for path, (data, _) in shown.items()}}, text, as_json=json)


def _fixed(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        pattern, _, value = text.rpartition("=")
        try:
            found[pattern] = float(value)
        except ValueError:
            pattern = ""
        if not pattern:
            raise typer.BadParameter(
                f"{text!r} is no pattern with an alpha; write for example 'head.*=1'",
                param_hint="--layer-alpha",
            )
    return found


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


def _check_report(folder: str, *, force: bool) -> None:
    from stockpot.io.atomic import refuse_existing
    from stockpot.report.records import RECORD_NAME

    refuse_existing(Path(folder) / RECORD_NAME, force=force, folder=False)


def _write_report(
    folder: str, told: Mapping[str, Mapping[str, Any]], base: str, task: Task
) -> None:
    from stockpot.evaluate.task import Role
    from stockpot.report.curves import curve_report
    from stockpot.report.records import save as save_record

    roles = {name: Role(split.role).value for name, split in task.splits.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_record(curve_report(told, base=base, roles=roles), folder)
    note(f"stockpot report {folder} makes a page of the curves")


def _shown(soup: Soup, saved: dict[str, Any], text: str) -> tuple[dict[str, Any], str]:
    """One curve as JSON and as text."""
    told: dict[str, Any] = soup.to_json()
    chosen = told.get("chosen", {"alpha": told["alpha"], "scores": told["scores"] or None})
    data = {**told, "curve": told.get("curve"), "chosen": chosen, **saved}
    if data["curve"] is None:
        return data, text
    rows = {f"{point['alpha']:g}": point["scores"] for point in data["curve"]}
    parts = [
        score_table(rows, "alpha"),
        _best_table(data),
        f"chosen: alpha {chosen['alpha']:g} ({data['rule']})",
        *_moved_layers(data),
        text,
    ]
    return data, "\n\n".join(parts)


def _best_table(data: Mapping[str, Any]) -> str:
    """By column: the best alpha, to read; what the chosen one and 0.5 have; the ensemble at 0.5."""
    middle = {p["alpha"]: p["scores"] for p in data.get("ensemble", [])}.get(0.5)
    columns = {
        "chosen": data["chosen"]["scores"],
        "alpha 0.5": data["half"]["scores"],
        **({} if middle is None else {"ensemble at 0.5": middle}),
    }
    rows = []
    for name, best in data["best"].items():
        cells = [_value(scores.get(name)) for scores in columns.values()]
        gain = f"{best['above_ends']:+.4f}"
        versus = _versus(data, name)
        rows.append([name, f"{best['alpha']:g}", f"{best['value']:.4f}", gain, *cells, versus])
    return table(
        ["split", "best alpha", "score", "above both ends", *columns, "chosen - TUNED"], rows
    )


def _value(score: Mapping[str, Any] | None) -> str:
    return "-" if score is None else f"{score['value']:.4f}"


def _versus(data: Mapping[str, Any], split: str) -> str:
    gain = data.get("gains", {}).get("tuned", {}).get(split)
    if gain is None or data["chosen"]["alpha"] == 1:
        return "-"
    noise = " (within noise)" if gain["within_noise"] else ""
    return f"{gain['difference']:+.4f}{noise}"


def _moved_layers(data: Mapping[str, Any]) -> list[str]:
    if "layers" not in data:
        return []
    kept = [f"{one['layer']} {one['alpha']:g}" for one in data["layers"] if one["accepted"]]
    return [f"layers with an alpha of their own: {', '.join(kept) or 'none'}"]
