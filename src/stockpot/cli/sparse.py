"""`stockpot sparse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit, progress_bar, table
from stockpot.cli._scoring import evaluating, score_table

if TYPE_CHECKING:
    from stockpot.train.sparse.soup import SparseResult


def sparse(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="The dense model, fine-tuned or a soup.")
    ],
    output: options.Output,
    task: options.Task,
    sparsity: Annotated[
        float, typer.Option("--sparsity", help="Share of prunable weights that become zero: 0.9.")
    ],
    phases: Annotated[
        int, typer.Option("--phases", min=1, help="Prune-retrain-average cycles; 1 is one-shot.")
    ] = 3,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="Copies retrained in each; 1 is IMP.")
    ] = 3,
    vary: Annotated[
        Literal["seed", "weight-decay", "retrain-length", "lr"],
        typer.Option("--vary", help="What the copies differ in."),
    ] = "seed",
    merge: Annotated[
        Literal["uniform", "greedy"], typer.Option("--merge", help="How they are averaged.")
    ] = "uniform",
    selector: Annotated[
        str,
        typer.Option(
            "--selector",
            metavar="NAME",
            help="magnitude, uniform, random, structured, or N:M such as 2:4.",
        ),
    ] = "magnitude",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Further parameters to prune."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Parameters to leave dense."),
    ] = None,
    schedule: Annotated[
        Literal["ft", "lrw", "slr", "clr", "llr", "allr"],
        typer.Option("--schedule", help="Learning rates of retraining."),
    ] = "llr",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of each retraining.")] = 5,
    lr_max: Annotated[
        float | None,
        typer.Option("--lr-max", help="Of the run that made CKPT; default: its record's."),
    ] = None,
    original_epochs: Annotated[
        int | None,
        typer.Option("--original-epochs", min=1, help="Of that run; default: its record's."),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="Default: the record's.")
    ] = None,
    train_batch_size: Annotated[
        int | None, typer.Option("--train-batch-size", min=1, help="Default: the record's.")
    ] = None,
    during: Annotated[
        Literal["gmp", "dpf", "bimp"] | None,
        typer.Option(
            "--during",
            help="CKPT is a start: train it for --original-epochs in all, pruning on the way.",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also make what the soup is held against: IMP and more."),
    ] = False,
    work: Annotated[
        str | None,
        typer.Option(
            "--work", metavar="DIR", help="Folder of the candidates; default: beside the output."
        ),
    ] = None,
    choose_on: options.ChooseOn = None,
    config_from: options.ConfigFrom = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Retrainings side by side; default: all that fit."),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Of each worker; results depend on it.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster, or local.")
    ] = None,
    gpus: Annotated[float, typer.Option("--gpus-per-run", help="Of the Ray cluster.")] = 0,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    seed: Annotated[int, typer.Option("--seed", help="Of retraining and of random masks.")] = 0,
    cache: options.Cache = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make a dense model sparse (sparse model soup).

    Each phase prunes the model, retrains copies of it that share the zeros, and averages them: the
    zeros stay, and accuracy comes back. Retraining needs the task's training data. A killed command
    continues where it was; the last candidates are kept in the work folder.

    \b
    stockpot sparse dense.safetensors --task handwriting --sparsity 0.9 -o sparse.safetensors
    stockpot sparse runs/run-03.safetensors --task my.py:task --sparsity 0.98 --schedule allr
        --candidates 4 --merge greedy --workers 4 --baselines -o sparse.safetensors
    stockpot sparse bert/ --task task.yaml --sparsity 0.5 --selector 2:4 --phases 1 -o sparse/
    stockpot sparse base.safetensors --task my.py:task --sparsity 0.9 --during gmp --phases 1
        --original-epochs 30 --lr-max 1e-3 -o sparse.safetensors
    """
    model_folder = checkpoint if Path(checkpoint).is_dir() else None
    how = saving(output, force=force, config_from=config_from or model_folder)
    check_output(how)
    import functools

    from stockpot.tasks.lookup import resolve
    from stockpot.train.sparse.soup import SparseSoup
    from stockpot.workers import WorkerOptions

    recipe = SparseSoup(
        sparsity=sparsity, n_phases=phases, n_candidates=candidates, vary=vary, merge=merge,
        selector=selector, include=tuple(include or ()), exclude=tuple(exclude or ()),
        schedule=schedule, epochs=epochs, lr_max=lr_max, original_epochs=original_epochs,
        weight_decay=weight_decay, batch_size=train_batch_size, during=during,
        baselines=baselines, seed=seed,
    )  # fmt: skip
    scoring: dict[str, Any] = {
        "cache": cache, "device": device, "precision": precision, "batch_size": batch_size,
        "seed": seed,
    }  # fmt: skip
    with evaluating(task, **scoring) as (_, evaluator), progress_bar() as progress:
        result = recipe.run(
            checkpoint, functools.partial(resolve, task), evaluator=evaluator,
            choose_on=choose_on, folder=_work_folder(output) if work is None else work,
            workers=WorkerOptions(
                n_workers=workers, threads=threads, ray=ray, gpus_per_job=gpus
            ),
            device=None if device in ("auto", "accelerate") else device,
            progress=progress, force=force,
        )  # fmt: skip
    measured = result.to_json()
    data, text = save(result.soup, how)
    emit({**measured, **data}, f"{_text(result)}\n\n{text}", as_json=json)


def _work_folder(output: str) -> str:
    """Beside the output, so that the record finds the candidates where they are."""
    path = Path(output)
    stem = path.stem if path.suffix in (".safetensors", ".pt", ".pth", ".bin") else path.name
    return str(path.with_name(f"{stem}-phases"))


def _text(result: SparseResult) -> str:
    rows: dict[str, Any] = {}
    cells = {}
    for phase in result.phases:
        name = f"phase {phase.phase}"
        rows[name] = phase.scores
        kept: Any = phase.soup["selected"]
        cells[name] = [f"{phase.sparsity:.4f}", f"{len(kept)} of {len(phase.candidates)}"]
    parts = [score_table(rows, "soup of", extra=["sparsity", "averaged"], cells=cells)]
    if result.baselines:
        found = result.baselines
        costs = {name: [str(row.epochs), str(row.models)] for name, row in found.items()}
        scores: dict[str, Any] = {name: row.scores for name, row in found.items()}
        parts.append(score_table(scores, extra=["epochs", "models"], cells=costs))
    facts = [
        ["sparsity (prunable weights)", f"{result.sparsity:.6f}"],
        ["sparsity (all parameters)", f"{result.sparsity_of_all:.6f}"],
        ["non-zero parameters", f"{result.nonzero_parameters} of {result.parameters}"],
        *_measures(result),
        ["epochs of retraining", f"{result.epochs['in_all']}, {result.epochs['in_a_row']} "
         "of them one after the other"],
    ]  # fmt: skip
    return "\n\n".join([*parts, table(["result", ""], facts)])


def _measures(result: SparseResult) -> list[list[str]]:
    """FLOPs, and by split the calibration and the worst class."""
    cost = result.cost
    rows = [
        [
            "FLOPs of a prediction, if no zero took any",
            f"{cost.flops:.0f} of {cost.dense_flops} ({cost.speed_up:.1f} times fewer)",
        ]
    ]
    for split, found in result.quality.items():
        rows.append([f"calibration error (ECE) on {split}", f"{found.ece:.4f}"])
        worst = f"{found.worst_class_accuracy:.3f} (class {found.worst_class})"
        rows.append([f"worst class on {split}", worst])
    return rows
