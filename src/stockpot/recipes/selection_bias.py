"""How much the score that chose flatters: selection optimism of a recipe's candidates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from stockpot._types import JSON
from stockpot.evaluate.stats import selection_optimism
from stockpot.recipes.base import Kitchen, Step
from stockpot.recipes.selection import single_predictions

if TYPE_CHECKING:
    from stockpot.evaluate.compare import Predictions
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.mixing import Mixture


Candidacy = Literal["scored", "full"]
"""Which candidates count: those that were scored on every example, or all, scored for it."""


def candidate_optimism(
    kitchen: Kitchen, recipe: str, tried: Iterable[tuple[Step, Mixture]], candidacy: Candidacy
) -> JSON:
    """Optimism of choosing among the single ingredients and the soups of `tried`.

    A soup that was rejected early has not been scored on all examples. It is left out, which makes
    the choice look easier than it was, unless `candidacy` is `"full"`, at the cost of scoring it.
    """
    evaluator, split = kitchen.scoring(recipe)
    if evaluator.metric.per_example is None:
        return None
    found = list(single_predictions(kitchen, recipe).values())
    found += [
        evaluator.predictions(mixture, split)
        for step, mixture in tried
        if candidacy == "full" or step.score is not None
    ]
    return optimism_to_json(evaluator, found)


def optimism_to_json(evaluator: Evaluator, candidates: Iterable[Predictions]) -> JSON:
    """`{value, low, high, candidates}` of choosing among these; None where a metric is no mean."""
    scores = [found.per_example for found in candidates]
    rows = [values for values in scores if values is not None]
    if len(rows) < len(scores) or len(rows[0]) < 2:
        return None
    found = selection_optimism(
        rows, higher_is_better=evaluator.metric.higher_is_better, seed=evaluator.seed
    )
    return {
        "value": found.value, "low": found.low, "high": found.high,
        "candidates": found.n_candidates,
    }  # fmt: skip
