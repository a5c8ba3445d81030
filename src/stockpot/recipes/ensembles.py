"""Baselines of soups: logit ensembles, at k times the cost, and finished models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from stockpot._types import JSON
from stockpot.evaluate.evaluator import Evaluator, Predictions, scores_to_json
from stockpot.evaluate.paired import compare
from stockpot.recipes.base import Step
from stockpot.recipes.selection import better, p_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockpot.evaluate.task import Score
    from stockpot.formats.base import Checkpoint


@dataclass(frozen=True)
class EnsembleResult:
    """What an ensemble scores; it is no soup and cannot be saved as one model.

    `members` are paths, in order of acceptance; inference costs one forward pass for each.
    """

    members: tuple[str, ...]
    scores: Mapping[str, Score]
    predictions: Mapping[str, Predictions] = field(repr=False)
    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Members, scores and steps."""
        return {
            "members": list(self.members),
            "scores": scores_to_json(self.scores),
            "steps": [step.to_json() for step in self.steps],
        }


def mean_logits(evaluator: Evaluator, parts: Sequence[Predictions], split: str) -> Predictions:
    """Predictions whose outputs are the mean of the outputs of `parts`, summed in float64."""
    total = np.zeros(parts[0].outputs.shape, np.float64)
    for part in parts:
        total += part.outputs
    return evaluator.judged((total / len(parts)).astype(np.float32), split)


def ensemble(
    evaluator: Evaluator, models: Iterable[Checkpoint], *, splits: Iterable[str] | None = None
) -> EnsembleResult:
    """The mean of the logits of all `models`, scored on `splits` (all when None)."""
    members = list(models)
    names = list(evaluator.task.splits if splits is None else splits)
    found = {
        split: mean_logits(evaluator, [evaluator.predictions(m, split) for m in members], split)
        for split in names
    }
    paths = tuple(m.path for m in members)
    return EnsembleResult(paths, evaluator.scores_of(found, name="the ensemble"), found)


def greedy_ensemble(
    evaluator: Evaluator,
    models: Iterable[Checkpoint],
    split: str,
    *,
    splits: Iterable[str] | None = None,
) -> EnsembleResult:
    """Forward selection as in a greedy soup, with mean logits in place of mean weights.

    Models are tried best first on `split`; one is kept if the score does not fall.
    """
    everyone = list(models)
    parts = {i: evaluator.predictions(model, split) for i, model in enumerate(everyone)}
    value = {i: _value(evaluator, p, split) for i, p in parts.items()}
    sign = -1.0 if evaluator.metric.higher_is_better else 1.0
    first, *others = sorted(parts, key=lambda i: (sign * value[i], i))
    kept, current, best = [first], parts[first], value[first]
    steps = [Step(everyone[first].path, accepted=True, score=best, reason="first")]
    for i in others:
        tried = mean_logits(evaluator, [parts[j] for j in (*kept, i)], split)
        score = _value(evaluator, tried, split)
        accepted = not better(evaluator.metric, best, score)
        steps.append(
            Step(everyone[i].path, accepted, score, p_value=p_value(tried, current, evaluator))
        )
        if accepted:
            kept.append(i)
            current, best = tried, score
    members = [everyone[i] for i in kept]
    whole = ensemble(evaluator, members, splits=splits)
    return EnsembleResult(whole.members, whole.scores, whole.predictions, tuple(steps))


def _value(evaluator: Evaluator, predictions: Predictions, split: str) -> float:
    return evaluator.score_of(predictions, split, name="an ensemble", interval=False).value


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
