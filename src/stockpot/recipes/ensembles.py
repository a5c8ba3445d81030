"""Baselines of soups: logit ensembles, at k times the cost, and finished models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from stockpot._figures import Cell, Column, Row, Table
from stockpot._types import JSON
from stockpot.evaluate.compare import Difference, Predictions, difference, p_value, scores_to_json
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.metrics import metric_by_name
from stockpot.evaluate.task import Role
from stockpot.evaluate.task_evaluator import require_outputs
from stockpot.io.paths import told_apart
from stockpot.recipes.result import Names, ScoredModel, Step, scores_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockpot.evaluate.task import Metric, Score
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
    return evaluator.from_outputs((total / len(parts)).astype(np.float32), split)


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
    standings = {i: evaluator.standing(p, split) for i, p in parts.items()}
    first, *others = sorted(parts, key=standings.__getitem__, reverse=True)
    kept, current, best = [first], parts[first], standings[first]
    value = _value(evaluator, current, split)
    steps = [Step(everyone[first].path, accepted=True, score=value, reason="first")]
    for i in others:
        tried = mean_logits(evaluator, [parts[j] for j in (*kept, i)], split)
        score = _value(evaluator, tried, split)
        standing = evaluator.standing(tried, split, name="an ensemble")
        accepted = standing >= best
        p = p_value(tried, current, seed=evaluator.seed)
        steps.append(Step(everyone[i].path, accepted, score, p_value=p))
        if accepted:
            kept.append(i)
            current, best = tried, standing
    members = [everyone[i] for i in kept]
    whole = ensemble(evaluator, members, splits=splits)
    return EnsembleResult(whole.members, whole.scores, whole.predictions, tuple(steps))


def _value(evaluator: Evaluator, predictions: Predictions, split: str) -> float:
    return evaluator.score_of(predictions, split, name="an ensemble", interval=False).value


@dataclass(frozen=True)
class ModelComparison:
    """What `compare_models` found: scores by path and split, every pair, and the ensemble.

    `pairs` holds a path and its difference to another, on each split. `own` holds the scores with
    the BatchNorm statistics of the files, where those compared have others. `best` is the path of
    the best model on the first split that may choose (of any, where none may). `categories` holds
    the scores by path, split and category, of splits that have any. `also` holds scores by further
    metrics, by path, metric and split, and `front` the paths of the models that no other one is as
    good as in all metrics and better than in one, on the split that `best` goes by.
    """

    scores: Mapping[str, Mapping[str, Score]]
    pairs: tuple[tuple[str, Difference], ...]
    ensemble: EnsembleResult | None
    own: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    best: str = ""
    categories: Mapping[str, Mapping[str, Mapping[str, Score]]] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, Mapping[str, Score]]] = field(default_factory=dict)
    front: tuple[str, ...] = ()

    def against_best(self) -> tuple[tuple[str, Difference], ...]:
        """The pairs that the best model is one of."""
        return tuple(pair for pair in self.pairs if self.best in (pair[0], pair[1].against))

    def tables(self, names: Names | None = None, *, every_pair: bool = False) -> tuple[Table, ...]:
        """Scores, and the pairs with the best model, or all.

        Args:
            names: path → a shorter name to show.
            every_pair: also pairs that the best model is not one of.
        """
        shown = names or {}
        rows = [
            ScoredModel(name=shown.get(path, path), scores=scores, chosen=path == self.best)
            for path, scores in self.scores.items()
        ]
        if self.ensemble is not None:
            rows.append(ScoredModel(name="ensemble", scores=self.ensemble.scores))
        rows += [
            ScoredModel(name=f"{shown.get(path, path)} (own statistics)", scores=scores)
            for path, scores in self.own.items()
        ]
        pairs = self.pairs if every_pair else self.against_best()
        compared = Table(
            name="pairs",
            title="Differences on the same examples",
            first="pair",
            columns=tuple(
                Column(name=name) for name in ("split", "difference", "low", "high", "p")
            ),
            rows=tuple(
                Row(
                    name=f"{shown.get(a, a)} - {shown.get(found.against, found.against)}",
                    cells=(found.split, found.value, found.low, found.high, found.p_value),
                )
                for a, found in pairs
            ),
        )
        return (
            scores_table(rows),
            *(
                self._on(split, number, shown)
                for number, split in enumerate(self.scores[self.best] if self.also else (), 1)
            ),
            *(
                self._by_category(number, split, shown)
                for number, split in enumerate(self._with_categories(), 1)
            ),
            *([compared] if pairs else []),
        )

    def _on(self, split: str, number: int, shown: Names) -> Table:
        """Scores on a split by every metric; models of the front are marked."""
        rows: list[Row] = []
        measured: list[Score] = []
        for path, by in self.also.items():
            measured = [self.scores[path][split], *(scores[split] for scores in by.values())]
            mark = "yes" if path in self.front else ""
            cells: tuple[Cell, ...] = (*(score.value for score in measured), mark)
            rows.append(Row(name=shown.get(path, path), cells=cells))
        names = [
            score.metric if score.higher_is_better else f"{score.metric} (less is better)"
            for score in measured
        ]
        return Table(
            name=f"metrics-{number}",
            title=f"{split}, by metric",
            first=split,
            columns=tuple(Column(name=name) for name in (*names, "Pareto front")),
            rows=tuple(rows),
        )

    def _with_categories(self) -> list[str]:
        return list(dict.fromkeys(split for by in self.categories.values() for split in by))

    def _by_category(self, number: int, split: str, shown: Names) -> Table:
        """Scores on a split by category, the worst of each model marked by its own column."""
        found = {path: by[split] for path, by in self.categories.items()}
        names = list(dict.fromkeys(name for by in found.values() for name in by))
        rows = []
        for path, by in found.items():
            worst = min(by, key=lambda name: by[name].quality(by[name].value))
            cells: tuple[Cell, ...] = (*(by[name].value for name in names), worst)
            rows.append(Row(name=shown.get(path, path), cells=cells))
        return Table(
            name=f"categories-{number}",
            title=f"{split}, by category",
            first=split,
            columns=tuple(Column(name=name) for name in (*names, "worst category")),
            rows=tuple(rows),
        )

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on; the ensemble is given by its scores."""
        pairs: list[JSON] = [_pair_json(path, found) for path, found in self.pairs]
        found: dict[str, JSON] = {
            "scores": {path: scores_to_json(found) for path, found in self.scores.items()},
            "pairs": pairs,
            "best": self.best,
            "ensemble": None if self.ensemble is None else scores_to_json(self.ensemble.scores),
        }
        if self.categories:
            found["categories"] = {
                path: {split: scores_to_json(by) for split, by in splits.items()}
                for path, splits in self.categories.items()
            }
        if self.also:
            found["metrics"] = {
                path: {name: scores_to_json(scores) for name, scores in by.items()}
                for path, by in self.also.items()
            }
            found["front"] = list(self.front)
        if self.own:
            found["own"] = {path: scores_to_json(scores) for path, scores in self.own.items()}
        return found


def compare_models(
    evaluator: Evaluator,
    models: Iterable[Checkpoint],
    *,
    with_ensemble: bool = False,
    metrics: Iterable[Metric | str] = (),
) -> ModelComparison:
    """Score `models` on every split of the task, and compare each two on the same examples.

    Twelve models make 66 pairs: at p < 0.05 about three of them differ by chance alone. BatchNorm
    networks are all scored under the evaluator's policy, and once more with their own statistics.

    Args:
        evaluator: scores, from its journal where it can.
        models: in the order in which they are compared.
        with_ensemble: also score the mean of the logits of all, at the cost of all.
        metrics: others, made of the same outputs: no model is run for them.

    Raises:
        EvaluationError: other metrics are asked for, and there are no outputs to make them of.
    """
    given = list(models)
    asked = [one for metric in metrics if (one := metric_by_name(metric)) != evaluator.metric]
    if asked:
        require_outputs(evaluator, f"a further metric ({asked[0].name})")
    names = told_apart(model.path for model in given)
    splits = list(evaluator.task.splits)
    found: dict[str, dict[str, Predictions]] = {
        name: {split: evaluator.predictions(model, split) for split in splits}
        for name, model in zip(names, given, strict=True)
    }
    scores = {path: evaluator.scores_of(by, name=path) for path, by in found.items()}
    pairs = tuple(
        (a, _difference(evaluator, a, b, split, found, scores))
        for split in splits
        for a, b in combinations(found, 2)
    )
    whole = ensemble(evaluator, given) if with_ensemble else None
    plain = evaluator.with_batchnorm("averaged")
    own = {
        name: plain.scores(model)
        for name, model in zip(names, given, strict=True)
        if evaluator.recalibrates(model)
    }
    categories = {
        path: {
            split: {
                name: evaluator.score_of(part, split, name=path)
                for name, part in predictions.by_category().items()
            }
            for split, predictions in by.items()
            if predictions.categories is not None
        }
        for path, by in found.items()
    }
    categories = {path: by for path, by in categories.items() if by}
    also = {
        path: {one.name: evaluator.scores_by(one, by, name=path) for one in asked}
        for path, by in (found.items() if asked else ())
    }
    split = _decides(evaluator)
    best = _best(evaluator, scores, split)
    front = pareto_front(
        {
            path: [one.quality(one.value)
                   for one in (scores[path][split], *(on[split] for on in by.values()))]
            for path, by in also.items()
        }
    )  # fmt: skip
    return ModelComparison(scores, pairs, whole, own, best, categories, also, front)


def pareto_front(qualities: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The names that no other one is as good as everywhere and better than somewhere.

    >>> pareto_front({"a": (1, 0), "b": (0, 1), "c": (0, 0), "d": (1, 0)})
    ('a', 'b', 'd')

    Args:
        qualities: name → values of which larger ones are better.
    """
    return tuple(
        name
        for name, own in qualities.items()
        if not any(
            all(x >= y for x, y in zip(other, own, strict=True)) and tuple(other) != tuple(own)
            for other in qualities.values()
        )
    )


def _decides(evaluator: Evaluator) -> str:
    """The first split that may choose; where none may, the first."""
    splits = evaluator.task.splits
    chooses = [name for name, split in splits.items() if split.role is Role.HELD_OUT]
    return (chooses or list(splits))[0]


def _best(evaluator: Evaluator, scores: Mapping[str, Mapping[str, Score]], split: str) -> str:
    best = ""
    for path, found in scores.items():
        if not best or evaluator.metric.better(found[split].value, scores[best][split].value):
            best = path
    return best


def _difference(
    evaluator: Evaluator,
    a: str,
    b: str,
    split: str,
    found: Mapping[str, Mapping[str, Predictions]],
    scores: Mapping[str, Mapping[str, Score]],
) -> Difference:
    paired = difference(found[a][split], found[b][split], split, against=b, seed=evaluator.seed)
    if paired is not None:
        return paired
    value = scores[a][split].value - scores[b][split].value
    return Difference(value=value, split=split, against=b)


def _pair_json(path: str, found: Difference) -> dict[str, JSON]:
    return {
        "a": path,
        "b": found.against,
        "split": found.split,
        **{k: v for k, v in found.to_json().items() if k != "within_noise"},
    }
