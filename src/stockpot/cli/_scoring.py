"""What the commands that score have in common: the task, the evaluator, tables of scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stockpot.cli._render import progress_bar, table

if TYPE_CHECKING:
    from stockpot.evaluation.scoring import Evaluator
    from stockpot.models.task import Task

__all__ = ["evaluating", "score_table", "steps_table"]


@contextlib.contextmanager
def evaluating(
    task: str,
    *,
    cache: str | None,
    device: str,
    precision: Any,
    batch_size: int | None,
    seed: int,
) -> Iterator[tuple[Task, Evaluator]]:
    """The task that was named, and an evaluator of it that journals and shows its progress."""
    from stockpot._io import cache_dir
    from stockpot.evaluation.scoring import Evaluator
    from stockpot.tasks import resolve

    found = resolve(task)
    with progress_bar() as progress:
        evaluator = Evaluator(
            found,
            cache=cache_dir() if cache is None else cache,
            device=device,
            precision=precision,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        try:
            yield found, evaluator
        finally:
            evaluator.journal.close()


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
    steps: list[dict[str, Any]], *, accepted: str = "kept", rejected: str = "left out"
) -> str:
    """What was tried in which order, and why it was kept or not."""
    rows = []
    for step in steps:
        score = "-"
        if step["score"] is not None:
            score = f"{step['score']:.4f}"
        elif step["score_at_most"] is not None:
            score = f"<={step['score_at_most']:.4f}"
        p_value = "-" if step["p_value"] is None else f"{step['p_value']:.3g}"
        noise = " (within noise)" if step["accepted"] and step["within_noise"] else ""
        verdict = (accepted if step["accepted"] else rejected) + noise
        rows.append([step["candidate"], score, p_value, str(step["examples"]), verdict])
    return table(["candidate", "score", "p", "examples", "decision"], rows)
