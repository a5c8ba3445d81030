"""Finished models side by side: scores, every pair on the same examples, and their ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from stockpot._types import JSON
from stockpot.analysis.ensembles import EnsembleResult, ensemble
from stockpot.evaluate.evaluator import Evaluator, Predictions, scores_to_json
from stockpot.evaluate.paired import compare

if TYPE_CHECKING:
    from stockpot.evaluate.task import Score
    from stockpot.formats.base import Checkpoint


@dataclass(frozen=True, slots=True)
class Pair:
    """Score of `a` minus score of `b` on one split.

    The 95 % interval and the p-value of no difference are None for metrics that are no means.
    """

    a: str
    b: str
    split: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True)
class ModelComparison:
    """What `compare_models` found: scores by path and split, every pair, and the ensemble."""

    scores: Mapping[str, Mapping[str, Score]]
    pairs: tuple[Pair, ...]
    ensemble: EnsembleResult | None

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on; the ensemble is given by its scores."""
        pairs: list[JSON] = [asdict(pair) for pair in self.pairs]
        return {
            "scores": {path: scores_to_json(found) for path, found in self.scores.items()},
            "pairs": pairs,
            "ensemble": None if self.ensemble is None else scores_to_json(self.ensemble.scores),
        }


def compare_models(
    evaluator: Evaluator, models: Iterable[Checkpoint], *, with_ensemble: bool = False
) -> ModelComparison:
    """Score `models` on every split of the task, and compare each two on the same examples.

    Twelve models make 66 pairs: at p < 0.05 about three of them differ by chance alone.

    Args:
        evaluator: scores, from its journal where it can.
        models: in the order in which they are compared.
        with_ensemble: also score the mean of the logits of all, at the cost of all.
    """
    given = list(models)
    splits = list(evaluator.task.splits)
    found: dict[str, dict[str, Predictions]] = {
        model.path: {split: evaluator.predictions(model, split) for split in splits}
        for model in given
    }
    scores = {path: evaluator.scores_of(by, name=path) for path, by in found.items()}
    pairs = tuple(
        _pair(evaluator, a, b, split, found, scores)
        for split in splits
        for a, b in combinations(found, 2)
    )
    whole = ensemble(evaluator, given) if with_ensemble else None
    return ModelComparison(scores, pairs, whole)


def _pair(
    evaluator: Evaluator,
    a: str,
    b: str,
    split: str,
    found: Mapping[str, Mapping[str, Predictions]],
    scores: Mapping[str, Mapping[str, Score]],
) -> Pair:
    one, other = found[a][split].per_example, found[b][split].per_example
    if one is None or other is None:
        difference = scores[a][split].value - scores[b][split].value
        return Pair(a, b, split, difference, None, None, None)
    result = compare(one, other, seed=evaluator.seed)
    return Pair(a, b, split, result.difference, result.low, result.high, result.p_value)
