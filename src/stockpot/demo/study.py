"""Choosing on the held-out digits, and measuring on the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot._types import Progress
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    shift_difference,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Score
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import BestSingle, Greedy, Soup, Uniform, WiseFT, ensemble
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.handwriting import SHIFTS

HEADLINE = ("base", "best-single", "uniform", "greedy", "wise-ft", "ensemble")
"""The models of the table, simplest first."""

CHOSEN_ON, TEST = "held-out", "test"


@dataclass(frozen=True)
class Study:
    """Everything that was decided and measured, before it is shown.

    `curve` is that of WiSE-FT: `{"alpha", "scores"}` from the base to the best single run.
    `fingerprints` are those of the base and the runs.
    """

    scores: Mapping[str, Mapping[str, Score]]
    gains: Mapping[str, Mapping[str, Difference]]
    soups: Mapping[str, Soup]
    best: str
    kept: tuple[str, ...]
    alpha: float
    curve: tuple[Mapping[str, Any], ...]
    n_examples: Mapping[str, int]
    fingerprints: Mapping[str, str]


def cook(
    task: ClassificationTask,
    base: Path,
    runs: Mapping[str, str],
    *,
    journal: Path,
    seed: int,
    progress: Progress,
) -> Study:
    """Score every run, choose the soups on the held-out digits, and score them on all splits."""
    evaluator = TaskEvaluator(task, cache=journal, device="cpu", seed=seed)
    models: dict[str, Checkpoint] = {
        name: open_checkpoint(path) for name, path in {"base": str(base), **runs}.items()
    }
    scores = _score_all(evaluator, models, progress)
    ingredients = Ingredients([models[name] for name in runs], base=models["base"])
    name_of = {checkpoint.path: name for name, checkpoint in models.items()}
    best = BestSingle().cook(ingredients, evaluator=evaluator)
    best_name = name_of[best.selected[0]]
    alone = Ingredients([models[best_name]], base=models["base"])
    soups = {
        "uniform": Uniform().cook(ingredients, evaluator=evaluator),
        "greedy": Greedy().cook(ingredients, evaluator=evaluator),
        "wise-ft": _along_the_curve(evaluator, alone, progress),
    }
    together = ensemble(evaluator, [models[name] for name in runs])
    scores["best-single"] = scores[best_name]
    for name, soup in soups.items():
        scores[name] = {split: s for split, s in soup.scores.items() if s is not None}
    scores["ensemble"] = together.scores
    sources = {"base": models["base"], "best-single": best.mixture}
    sources |= {name: soup.mixture for name, soup in soups.items()}
    predictions: dict[str, Mapping[str, Predictions]] = {
        name: {split: evaluator.predictions(source, split) for split in (TEST, *SHIFTS)}
        for name, source in sources.items()
    }
    predictions["ensemble"] = together.predictions
    extra: Mapping[str, Any] = soups["wise-ft"].details.to_json()
    return Study(
        scores=scores,
        gains={
            name: _gains(evaluator, predictions[name], predictions["best-single"])
            for name in HEADLINE
            if name != "best-single"
        },
        soups=soups,
        best=best_name,
        kept=tuple(name_of[path] for path in soups["greedy"].selected),
        alpha=float(extra["alpha"]),
        curve=tuple(extra["curve"]),
        n_examples={split: evaluator.n_examples(split) for split in task.splits},
        fingerprints={name: model.fingerprint for name, model in models.items()},
    )


def _score_all(
    evaluator: Evaluator, models: Mapping[str, Checkpoint], progress: Progress
) -> dict[str, Mapping[str, Score]]:
    scores: dict[str, Mapping[str, Score]] = {}
    for number, (name, model) in enumerate(models.items(), 1):
        scores[name] = evaluator.scores(model)
        progress(number, len(models), "models scored")
    return scores


def _along_the_curve(evaluator: Evaluator, alone: Ingredients, progress: Progress) -> Soup:
    """WiSE-FT of one run; the evaluator reports points of the curve among other things."""

    def only_points(done: int, total: int | None, what: str) -> None:
        if what == "points of the curve":
            progress(done, total, what)

    before = evaluator.progress
    evaluator.progress = only_points
    try:
        return WiseFT().cook(alone, evaluator=evaluator)
    finally:
        evaluator.progress = before


def _gains(
    evaluator: Evaluator, model: Mapping[str, Predictions], best: Mapping[str, Predictions]
) -> dict[str, Difference]:
    """Paired differences to the best single run, on the test split and averaged over the shifts."""
    against, seed = "best-single", evaluator.seed
    gaps = {
        TEST: difference(model[TEST], best[TEST], TEST, against=against, seed=seed),
        SHIFT_AVERAGE: shift_difference(
            model, best, evaluator.task.splits, against=against, seed=seed
        ),
    }
    # Accuracy is a mean over examples, so that no difference is missing.
    return {split: gap for split, gap in gaps.items() if gap is not None}
