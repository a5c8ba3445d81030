"""`stockpot sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit, note, progress_bar, table

if TYPE_CHECKING:
    from stockpot.train.sweep.run import SweepResult


def sweep(
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="RUNS", help="Folder of the sweep.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Data and metric: handwriting, a task.yaml, or file.py:name.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="CKPT", help="Where all runs start; handwriting makes its own."
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=1, help="How many there shall be, done ones included.")
    ] = 12,
    space: Annotated[
        str,
        typer.Option("--space", help="small, image, text, align, or a .yaml or .json file."),
    ] = "small",
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale", metavar="NAME=FACTOR", help="Multiply a law, such as lr=100."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train", metavar="CMD", help='Your own program: "python t.py --lr {lr} -o {out}".'
        ),
    ] = None,
    sampler: Annotated[
        Literal["random", "tpe", "qmc", "gp"],
        typer.Option("--sampler", help="random draws from the space's law; others are Optuna's."),
    ] = "random",
    study: Annotated[
        bool, typer.Option("--study", help="Keep trials in RUNS/optuna.log for its dashboard.")
    ] = False,
    kind: Annotated[
        Literal["safetensors", "pt", "folder"],
        typer.Option("--format", help="Of the checkpoints; folder: like a transformers base."),
    ] = "safetensors",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: as many as fit.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Of each worker; results depend on it.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster, or local.")
    ] = None,
    gpus: Annotated[float, typer.Option("--gpus-per-run", help="Of the Ray cluster.")] = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, …; default: the best there is.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws and of the runs.")] = 0,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="DIR", help="Journal of scores; default: the user's."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Make failed runs again.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Fine-tune ingredients from one base, resumably.

    Hyper-parameters are drawn from a space. Called again, a killed sweep continues to the same
    checkpoints, and a larger --runs adds to what is there. A run that fails is kept with its reason
    and does not stop the others.

    \b
    stockpot sweep --task handwriting -o RUNS --workers 2
    stockpot sweep --task my.py:task --base base/ -o RUNS --space image --scale lr=10 --runs 72
    stockpot sweep --task my.py:task -o RUNS --space s.yaml --train "python t.py {lr} {out}"
    stockpot greedy RUNS --task handwriting -o soup.safetensors
    """
    factors = dict(_factor(text) for text in scale or ())
    import functools

    from stockpot.errors import TrainingError
    from stockpot.io.paths import cache_dir
    from stockpot.tasks.lookup import place_base, resolve
    from stockpot.train.sweep.named import resolve_space
    from stockpot.train.sweep.options import SweepOptions
    from stockpot.train.sweep.run import run_sweep
    from stockpot.workers import WorkerOptions

    with progress_bar() as progress:
        start = base
        if start is None and task is not None:
            start = place_base(task, output, progress=progress)
        if task is not None and not (Path(output) / "sweep.json").exists():
            _check(task, None if train is not None else start)
        result = run_sweep(
            None if task is None else functools.partial(resolve, task),
            start,
            SweepOptions(
                n_runs=runs, space=resolve_space(space).scaled(factors), seed=seed, train=train,
                sampler=sampler, study=study, format=kind, device=device,
                retry_failed=retry_failed,
            ),
            out=output,
            workers=WorkerOptions(
                n_workers=workers, threads=threads, ray=ray, gpus_per_job=gpus
            ),
            cache=cache_dir() if cache is None else cache,
            progress=progress,
        )  # fmt: skip
    _note_failures(result)
    if not result.paths:
        raise TrainingError(f"all {len(result.runs)} runs failed; their records are in {output}")
    emit(_data(result), _text(result), as_json=json)


def _check(task: str, start: str | None) -> None:
    """Look at a task of the user's before the first run; the others are checked where loaded."""
    from stockpot import formats as checkpoint
    from stockpot.tasks.checks import check_ready
    from stockpot.tasks.lookup import in_python_file, resolve

    if in_python_file(task):
        check_ready(resolve(task), None if start is None else checkpoint.open(start))


def _factor(text: str) -> tuple[str, float]:
    name, equals, factor = text.partition("=")
    try:
        if equals:
            return name, float(factor)
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r} is no factor; write for example lr=100", param_hint="--scale"
    )


def _note_failures(result: SweepResult) -> None:
    for run in result.runs:
        if run.error is not None:
            reason = run.error["message"].splitlines()[:1]
            note(f"{run.name} failed: {run.error['type']}: {''.join(reason)} (see {run.name}.json)")


def _data(result: SweepResult) -> dict[str, Any]:
    done = [run for run in result.runs if run.done]
    return {
        "base": result.base or None,
        "runs": [
            {
                "path": path,
                "hyperparameters": dict(run.hyperparameters),
                "scores": run.scores,
                "seed": run.seed,
                "averages": dict(run.averages),
            }
            for path, run in zip(result.paths, done, strict=True)
        ],
        "failed": [{"name": r.name, "error": r.error} for r in result.runs if r.error is not None],
    }


def _text(result: SweepResult) -> str:
    done = [run for run in result.runs if run.done]
    names = list(done[0].scores or {})
    rows = [[run.name, *(_percent((run.scores or {}).get(name)) for name in names)] for run in done]
    return table(["run", *names], rows)


def _percent(score: Any) -> str:
    return "" if score is None else f"{score['value']:.3f}"
