"""What the recipes that choose ingredients share: ranking them and their order."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.compare import Predictions
from stockpot.recipes.base import Kitchen

Order = Literal["score", "random", "given"]


def single_predictions(kitchen: Kitchen, recipe: str) -> dict[int, Predictions]:
    """Predictions of every ingredient, duplicates left out, on the split that decides.

    Raises:
        EvaluationError: scores that are not numbers; every ingredient at fault is named.
    """
    evaluator, split = kitchen.scoring(recipe)
    duplicates = kitchen.duplicates()
    models = {
        i: kitchen.uniform([i]) for i in range(len(kitchen.ingredients)) if i not in duplicates
    }
    evaluator.score_ahead(list(models.values()) if evaluator.n_ahead else [], split)
    found = dict[int, Predictions]()
    problems: list[str] = []
    for i, mixture in models.items():
        try:
            found[i] = evaluator.predictions(mixture, split)
            evaluator.score_of(found[i], split, name=kitchen.paths[i], interval=False)
        except EvaluationError as error:
            # Where nothing could be scored yet, what scores is at fault rather than a checkpoint.
            if not found:
                raise
            problems.append(str(error))
    if problems:
        raise EvaluationError("\n".join(problems))
    return found


def ranked(
    kitchen: Kitchen, recipe: str, predictions: dict[int, Predictions] | None = None
) -> list[tuple[int, float]]:
    """Positions and values of the ingredients, best first; ties in the order of arguments."""
    evaluator, split = kitchen.scoring(recipe)
    singles = single_predictions(kitchen, recipe) if predictions is None else predictions
    values = {
        i: evaluator.score_of(found, split, name=kitchen.paths[i], interval=False).value
        for i, found in singles.items()
    }
    quality = evaluator.metric.quality
    return sorted(values.items(), key=lambda item: (-quality(item[1]), item[0]))


def in_order(ranking: list[tuple[int, float]], order: Order, *, seed: int) -> list[int]:
    """The positions of `ranking` in the order in which they are tried.

    >>> in_order([(2, 0.9), (0, 0.8), (1, 0.7)], "given", seed=0)
    [0, 1, 2]
    """
    positions = [i for i, _ in ranking]
    if order == "score":
        return positions
    if order == "given":
        return sorted(positions)
    if order == "random":
        shuffled: list[int] = np.random.default_rng(seed).permutation(sorted(positions)).tolist()
        return shuffled
    raise RecipeError(f"order is {order!r}, expected score, random or given")
