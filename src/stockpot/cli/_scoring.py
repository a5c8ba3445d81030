"""What the commands that score have in common: the task, the evaluator, tables of scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from stockpot.cli._render import progress_bar, table

if TYPE_CHECKING:
    from stockpot._types import Progress, StrPath
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.evaluate.task import Task


@contextlib.contextmanager
def evaluating(
    task: str | None,
    *,
    cache: str | None,
    device: str,
    precision: Any,
    batch_size: int | None,
    seed: int,
    workers: int = 1,
    no_journal: bool = False,
    program: Program | None = None,
) -> Iterator[tuple[Task, Evaluator]]:
    """The task that was named, and an evaluator of it that journals and shows its progress.

    With a `program` in place of a task, the evaluator runs that.
    """
    from stockpot.io.paths import cache_dir

    if no_journal and cache is not None:
        raise typer.BadParameter("there is no journal to keep there", param_hint="--cache")
    folder = None if no_journal else cache_dir() if cache is None else cache
    if (task is None) == (program is None):
        raise typer.BadParameter("give --task, or --eval, and not both", param_hint="--task")
    with progress_bar() as progress:
        if program is not None:
            evaluator = program.evaluator(folder, workers, progress)
        else:
            from stockpot.evaluate.task_evaluator import TaskEvaluator
            from stockpot.tasks import resolve

            evaluator = TaskEvaluator(
                resolve(str(task)),
                cache=folder,
                device=device,
                precision=precision,
                batch_size=batch_size,
                seed=seed,
                n_workers=workers,
                progress=progress,
            )
        try:
            if program is None:
                _look_at(str(task), evaluator, folder, progress)
            yield evaluator.task, evaluator
        finally:
            evaluator.close()


def _look_at(spec: str, evaluator: Evaluator, cache: StrPath | None, progress: Progress) -> None:
    """Refuse a task of the user's that chooses on what it reports.

    Built-in tasks are known to be sound, and task files are looked at when they are loaded.
    """
    from stockpot.tasks.checks import check_apart
    from stockpot.tasks.lookup import in_python_file

    if in_python_file(spec):
        splits = {name: evaluator.fingerprint(name) for name in evaluator.task.splits}
        check_apart(evaluator.task, splits, cache=cache, progress=progress)


@dataclass(frozen=True)
class Program:
    """The options that say which program scores."""

    command: str
    test: str | None
    direction: str
    timeout_s: float | None
    deciding: str | None = None

    def evaluator(self, cache: StrPath | None, workers: int, progress: Progress) -> Evaluator:
        """What runs it."""
        from stockpot.evaluate.command import CommandEvaluator

        return CommandEvaluator(
            self.command,
            test=None if self.test is None else {"test": self.test},
            higher_is_better=self.direction == "max",
            timeout_s=self.timeout_s,
            deciding=self.deciding,
            cache=cache,
            n_workers=workers,
            progress=progress,
        )


def program(
    command: str | None,
    test: str | None,
    direction: str,
    timeout_s: float | None,
    deciding: str | None = None,
) -> Program | None:
    """The program of --eval and its companions; None without."""
    if command is None:
        if test is not None:
            raise typer.BadParameter("it reports what --eval chose", param_hint="--eval-test")
        if deciding is not None:
            raise typer.BadParameter(
                "it decides on what --eval fitted; with --task, --decide-on names a split",
                param_hint="--eval-deciding",
            )
        return None
    return Program(command, test, direction, timeout_s, deciding)


def score_table(
    scores: Mapping[str, Mapping[str, Any]],
    first: str = "model",
    *,
    extra: Sequence[str] = (),
    cells: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Scores {row: {split: score as JSON}} with half the width of their 95 % intervals.

    `extra` names further columns, whose `cells` stand under the name of the row.
    """
    splits = list(dict.fromkeys(split for row in scores.values() for split in row))
    rows = [
        [name, *(_score(row.get(split)) for split in splits), *(cells or {}).get(name, ())]
        for name, row in scores.items()
    ]
    return table([first, *splits, *extra], rows)


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    if score["low"] is None or score["high"] is None:
        return f"{score['value']:.4f}"
    return f"{score['value']:.4f} ±{(score['high'] - score['low']) / 2:.3f}"


def steps_table(
    told: Mapping[str, Any], *, accepted: str = "kept", rejected: str = "left out"
) -> str:
    """What a soup's recipe tried in which order, and why it was kept or not."""
    steps: list[dict[str, Any]] = told["steps"]
    bound = "<=" if told["direction"] == "max" else ">="
    rows = []
    for step in steps:
        score = "-"
        if step["score"] is not None:
            score = f"{step['score']:.4f}"
        elif step["score_at_most"] is not None:
            score = f"{bound}{step['score_at_most']:.4f}"
        p_value = "-" if step["p_value"] is None else f"{step['p_value']:.3g}"
        noise = " (within noise)" if step["accepted"] and step["within_noise"] else ""
        verdict = (accepted if step["accepted"] else rejected) + noise
        rows.append([step["candidate"], score, p_value, str(step["examples"]), verdict])
    return table(["candidate", "score", "p", "examples", "decision"], rows)


def selection_lines(told: Mapping[str, Any]) -> list[str]:
    """What choosing took, and by how much the score that chose flatters."""
    examples, plain = told["examples_evaluated"], told["examples_plain"]
    lines = []
    if plain:
        share = f"{100 * examples / plain:.0f} % of the {plain:,} of a plain loop"
        apart = told["examples_calibration"]
        also = f"; {apart:,} more for BatchNorm statistics" if apart else ""
        lines.append(f"examples scored while choosing: {examples:,}, {share}{also}")
    found = told.get("optimism")
    if found is not None:
        lines.append(
            f"selection optimism: choosing flatters the held-out score by about "
            f"{found['value']:+z.4f} (95 % of resamples {found['low']:+z.4f} to "
            f"{found['high']:+z.4f}; {found['candidates']} candidates)"
        )
    return lines
