"""`stockpot diagnose`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit, progress_bar, table
from stockpot.cli._scoring import evaluating, score_table

if TYPE_CHECKING:
    from stockpot.diagnosis.result import Diagnosis


def diagnose(
    checkpoints: options.Checkpoints,
    task: options.Task,
    base: Annotated[
        str,
        typer.Option(
            "--base", metavar="CKPT", help="The checkpoint that all were fine-tuned from."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder for report.html and report.json."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            metavar="N",
            help="Most evaluations, of one model on one split; default: as many as it takes.",
        ),
    ] = None,
    line: Annotated[
        list[str] | None,
        typer.Option(
            "--line",
            metavar="A,B",
            help="Also the line from A to B: checkpoints, the base, uniform or greedy. Repeatable.",
        ),
    ] = None,
    choose_on: options.ChooseOn = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    workers: options.Workers = 1,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    no_journal: options.NoJournal = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be evaluated; evaluate nothing.")
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Say whether checkpoints will soup, and why or why not.

    Measures barriers on the lines between them, the angles of their moves, the landscape around the
    two best, soups against the ensemble, calibration, and what each checkpoint is worth. All that
    was scored is kept in a journal: a killed command continues, and nothing is scored twice. With
    -o it also writes a page with figures.

    \b
    stockpot diagnose runs/ --task handwriting --base base.safetensors -o diagnosis
    stockpot diagnose a.pt b.pt c.pt --task my_task.py:task --base base.pt --budget 100
    stockpot diagnose runs/ --task my_task.py:task --base base.pt --line base.pt,uniform --json
    """
    between = [_two(text) for text in line or ()]
    if output is not None:
        _refuse_existing(output, force=force)
    from stockpot.formats.opening import expand_paths
    from stockpot.mixing.ingredients import Ingredients

    paths = expand_paths(checkpoints)
    given = Ingredients(paths, base=base, on_mismatch=on_mismatch, key=key)
    with (
        evaluating(
            task, cache=cache, device=device, precision=precision, batch_size=batch_size,
            workers=workers, seed=seed, no_journal=no_journal,
        ) as (found, evaluator),
        progress_bar() as progress,
    ):  # fmt: skip
        if dry_run:
            data = _planned(given, found, budget, len(between))
            emit(data, _plan_text(data), as_json=json)
            return
        from stockpot.diagnosis.study import diagnose as study

        result = study(
            given,
            evaluator=evaluator,
            budget=budget,
            choose_on=choose_on,
            between=between,
            hyperparameters=_hyperparameters(paths),
            progress=progress,
        )
    data = result.to_json()
    text = _text(result, data)
    if output is not None:
        page = _write(result, output, force=force)
        data = {**data, "report": page}
        text += f"\n\n{page}"
    emit(data, text, as_json=json)


def _hyperparameters(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By path, where a sweep or a demo left a record beside the checkpoint."""
    from stockpot.errors import ReportError
    from stockpot.report import load
    from stockpot.train.sweep.records import RunRecord

    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        record = Path(path).with_suffix(".json")
        if record.is_file():
            with contextlib.suppress(ReportError):  # another program's file beside a checkpoint
                run = RunRecord.load(record)
                found[path] = {**run.hyperparameters, "seed": run.seed}
    for folder in {Path(path).parent.parent for path in paths} if len(found) == 0 else ():
        with contextlib.suppress(ReportError):
            told = {m.name: m.hyperparameters for m in load(folder).models if m.hyperparameters}
            found |= {p: dict(told[Path(p).stem]) for p in paths if Path(p).stem in told}
    return found


def _two(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise typer.BadParameter(
            f"{text!r} names no line; write two models as A,B", param_hint="--line"
        )
    return parts[0], parts[1]


def _refuse_existing(output: str, *, force: bool) -> None:
    from stockpot.io.atomic import refuse_existing
    from stockpot.report.records import PAGE_NAME, RECORD_NAME

    for name in (PAGE_NAME, RECORD_NAME):
        refuse_existing(Path(output) / name, force=force, folder=False)


def _planned(given: Any, task: Any, budget: int | None, n_asked: int) -> dict[str, Any]:
    from stockpot.diagnosis.plan import plan, share_out
    from stockpot.evaluate.batchnorm import has_batchnorm
    from stockpot.evaluate.task import Role

    n_reporting = sum(split.role is not Role.HELD_OUT for split in task.splits.values())
    parts = plan(
        len(given), n_reporting, n_asked=n_asked, has_batchnorm=has_batchnorm(task.build())
    )
    shares = share_out(budget, parts)
    wishes = {part.name: part.wish for part in parts}
    return {
        "budget": {"given": budget, "planned": sum(shares.values()), "made": 0, "parts": shares},
        "wishes": wishes,
    }


def _plan_text(data: Mapping[str, Any]) -> str:
    shares, wishes = data["budget"]["parts"], data["wishes"]
    rows = [[name, str(share), str(wishes[name])] for name, share in shares.items()]
    rows.append(["together", str(sum(shares.values())), str(sum(wishes.values()))])
    return table(["part", "evaluations at most", "without a limit"], rows)


def _text(found: Diagnosis, data: Mapping[str, Any]) -> str:
    """The verdict first, then the tables that it rests on."""
    from stockpot.report.diagnosis_info import short_names

    models, lines = data["robustness"]["models"], data["barriers"]["lines"]
    names = short_names([*models, *(line[end] for line in lines for end in ("a", "b"))])
    verdict = "\n".join(data["verdict"]["sentences"])
    parts = [verdict, score_table({names[name]: row["scores"] for name, row in models.items()})]
    if lines:
        rows = [
            [f"{names[x['a']]} - {names[x['b']]}", x["kind"], f"{x['barrier']:.4f}", f"{x['at']:g}"]
            for x in lines
        ]
        parts.append(table(["line", "kind", "barrier (nat)", "at"], rows))
    if data["calibration"]["models"]:
        parts.append(_calibration(data["calibration"], names))
    budget = data["budget"]
    parts.append(
        f"{budget['made']} evaluations were made, of {budget['planned']} that were planned at most"
    )
    parts += [f"note: {note}" for note in found.notes]
    return "\n\n".join(parts)


def _calibration(data: Mapping[str, Any], names: Mapping[str, str]) -> str:
    def cells(row: Mapping[str, Any]) -> Sequence[str]:
        pairs = [(row["before"][m], row["after"][m]) for m in ("ece", "nll", "brier")]
        return [f"{before:.4f} -> {after:.4f}" for before, after in pairs]

    rows = [
        [names[row["name"]], *cells(row), f"{1 / row['after']['beta']:.3f}"]
        for row in data["models"]
    ]
    head = [f"calibration on {data['reported_on']}", "ECE", "NLL", "Brier", "temperature"]
    return table(head, rows)


def _write(found: Diagnosis, output: str, *, force: bool) -> str:
    from stockpot.report import write_diagnosis

    return str(write_diagnosis(found, output, force=force))
