"""Where a sparse soup is made: data and scores, its folder, and the workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot._types import Progress, StrPath
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Score, Task
from stockpot.evaluate.task_evaluator import TaskEvaluator, require_outputs
from stockpot.formats.base import Checkpoint
from stockpot.mixing import Mixture
from stockpot.train.run_folder import RunFolder
from stockpot.train.sparse.cost import ClassQuality, class_quality
from stockpot.train.sparse.jobs import Jobs
from stockpot.train.task_maker import TaskOrMaker, make_task, task_for_workers
from stockpot.workers import WorkerOptions

_OWNED = ("phase-*", "chain-*", "trained*", "start.*", ".trained*")


@dataclass(frozen=True)
class Surroundings:
    """Where a sparse soup is made: data and scores, the folder, and who runs the jobs.

    `split` is the one that decides; `report` says whether all splits are scored.
    """

    evaluator: TaskEvaluator
    split: str
    folder: RunFolder
    jobs: Jobs
    progress: Progress
    report: bool

    @property
    def splits(self) -> list[str] | None:
        """Splits that are scored; None for all."""
        return None if self.report else [self.split]

    def quality(self, model: Checkpoint | Mixture) -> dict[str, ClassQuality]:
        """Calibration and worst class by split; empty for tasks that are no classification."""
        names = list(self.evaluator.task.splits) if self.splits is None else self.splits
        return qualities({n: self.evaluator.predictions(model, n) for n in names})

    def scores(self, model: Checkpoint | Mixture) -> Mapping[str, Score]:
        """Scores of a model on what is reported."""
        return self.evaluator.scores(model, self.splits)


def qualities(predictions: Mapping[str, Predictions]) -> dict[str, ClassQuality]:
    """Of predictions by split, those that are logits."""
    found = {split: class_quality(one) for split, one in predictions.items()}
    return {split: one for split, one in found.items() if one is not None}


def sparse_folder(path: StrPath) -> RunFolder:
    """The folder of one sparse soup."""
    return RunFolder(
        path=Path(path), marker="sparse.json", kind="a sparse soup", owned=_OWNED,
        force="force=True (--force)", other="folder=…, --work",
    )  # fmt: skip


def evaluator_for(task: TaskOrMaker | None, evaluator: Evaluator | None) -> TaskEvaluator:
    """What scores: the evaluator given, or one that forgets, under one BatchNorm policy for all.

    Raises:
        RecipeError: there is no task, it has no training set, or the evaluator has no outputs.
    """
    made = make_task(task) if evaluator is None else evaluator.task
    if made is None:
        raise RecipeError("a sparse soup trains and needs a task: give task=… (--task)")
    if made.train_set is None:
        raise RecipeError("the task has no train_set, so nothing can be retrained: give it one")
    scoring = (
        TaskEvaluator(made) if evaluator is None else require_outputs(evaluator, "a sparse soup")
    )
    return scoring.with_default_batchnorm(None)


def jobs_for(
    task: TaskOrMaker | None, evaluator: TaskEvaluator, workers: WorkerOptions, device: str | None
) -> Jobs:
    """Jobs whose workers make the task for themselves, and score into the evaluator's journal."""
    journal = evaluator.journal.path
    make = functools.partial(
        _make_evaluator,
        task_for_workers(
            evaluator.task if task is None else task,
            evaluator.task,
            n_workers=workers.n_workers if workers.ray is None else None,
        ),
        cache=None if journal is None else str(Path(journal).parent),
        device="auto" if device is None else device,
        precision=evaluator.precision,
        seed=evaluator.seed,
        batchnorm=evaluator.batchnorm,
    )
    return Jobs(workers, make, device)


def _make_evaluator(make: Callable[[], Task | None], **options: Any) -> Evaluator:
    task = make()
    assert task is not None
    return TaskEvaluator(task, **options)
