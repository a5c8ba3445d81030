"""Sparse soups: prune once, retrain several copies that share the mask, average, repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stockpot._types import Progress, StrPath, no_progress
from stockpot.train.sparse.options import SparseOptions, SparseResult
from stockpot.workers import ONE_WORKER, WorkerOptions

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.evaluate.task import Task
    from stockpot.mixing.ingredients import Source


@dataclass(frozen=True, kw_only=True)
class SparseSoup(SparseOptions):
    """A training pipeline, and no recipe: `run` trains.

    See `SparseOptions` for the settings and what they do.
    """

    def run(
        self,
        start: Source,
        task: Task | Callable[[], Task] | None = None,
        *,
        folder: StrPath,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        workers: WorkerOptions = ONE_WORKER,
        device: str | None = None,
        progress: Progress = no_progress,
        report: bool = True,
        force: bool = False,
        keep_all: bool = False,
    ) -> SparseResult:
        """Make the sparse soup of the dense checkpoint `start`.

        A call that was killed goes on where it was, retraining by retraining, to the same bytes;
        the number of workers changes none.

        Args:
            start: the dense model (with `during`: what is trained first).
            task: with a `train_set`; or a function that makes it, for each worker to call where the
                task cannot be pickled.
            folder: where candidates are kept; the soup is an average of those of the last phase.
            evaluator: scores; by default one that forgets, made from the task.
            choose_on: the held-out split that decides, where there are several.
            workers: retrainings side by side.
            device: that trains; None for the best one.
            progress: called in retrainings.
            report: score on all splits, and not only on the one that decides.
            force: start over where `folder` holds a run with other settings.
            keep_all: keep the candidates of all phases, and not of the last one only.

        Raises:
            RecipeError: there is no task, or nothing to train on.
            OutputExistsError: `folder` holds a sparse soup with other settings.
            MaskMismatchError: retrained models do not share their mask.
        """
        from stockpot.evaluate.splits import split_to_choose_on
        from stockpot.train.sparse import surroundings
        from stockpot.train.sparse.pipeline import run_pipeline

        scoring = surroundings.evaluator_for(task, evaluator)
        around = surroundings.Surroundings(
            evaluator=scoring,
            split=split_to_choose_on(scoring.task, choose_on),
            folder=surroundings.sparse_folder(folder),
            jobs=surroundings.jobs_for(task, scoring, workers, device),
            progress=progress,
            report=report,
        )
        return run_pipeline(self, start, around, force=force, keep_all=keep_all)
