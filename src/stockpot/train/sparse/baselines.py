"""What a sparse soup is compared with, at the same sparsity and with its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    scores_to_json,
    shift_average,
    shifts_among,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.stats import bootstrap_mean
from stockpot.evaluate.task import Score
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing import Mixture
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes.ensembles import ensemble
from stockpot.recipes.soup import Soup
from stockpot.train.sparse.jobs import Chain, Plan, own_seeds, prune
from stockpot.train.sparse.soup import SparseBaseline, SparseSoup
from stockpot.train.sparse.surroundings import Surroundings


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Makes and scores the baselines of one sparse soup; what is made stays in its folder."""

    around: Surroundings
    plan: Plan
    recipe: SparseSoup

    def table(self, dense: Checkpoint, soup: Soup) -> dict[str, SparseBaseline]:
        """Models by name, the soup itself among them.

        `imp-reprune` averages as many independent IMP models as the soup has candidates, and prunes
        the average back to the target.
        """
        m, n = self.recipe.n_candidates, len(self.plan.sparsities)
        each = self.plan.epochs * n
        evaluator, splits = self.around.evaluator, self.around.splits
        candidates = list(soup.mixture.ingredients)
        quality = [self._quality(candidate) for candidate in candidates]
        chains = self._chains(dense)
        self.around.jobs.run(chains, self.around.progress, "baselines")
        models = {name: open_checkpoint(chain.out) for name, chain in chains.items()}
        repruned = self._repruned([models[f"imp-{i}"] for i in range(m)])
        sparsity = self.plan.sparsities[-1]
        scores = self.around.scores
        best = candidates[quality.index(max(quality))]
        together = ensemble(evaluator, candidates, splits=splits).scores
        rows: dict[str, tuple[Mapping[str, Score | None], float, int, int]] = {
            "dense": (scores(dense), 0.0, 0, 1),
            "soup": (soup.scores, sparsity, each * m, 1),
            "best-candidate": (scores(best), sparsity, each * m, 1),
            "mean-candidate": (
                mean_scores(evaluator, candidates, splits), sparsity, each * m, 1,
            ),
            "imp": (scores(models["imp-0"]), sparsity, each, 1),
            f"imp-{m}x": (scores(models["imp-long"]), sparsity, each * m, 1),
            "imp-reprune": (scores(repruned), sparsity, each * m, 1),
            "ensemble": (together, sparsity, each * m, m),
        }  # fmt: skip
        return {
            name: SparseBaseline(scores=scores_to_json(found), sparsity=s, epochs=e, models=k)
            for name, (found, s, e, k) in rows.items()
        }

    def _quality(self, model: Checkpoint) -> float:
        score = self.around.evaluator.score(model, self.around.split)
        return score.quality(score.value)

    def _chains(self, dense: Checkpoint) -> dict[str, Chain]:
        m, n = self.recipe.n_candidates, len(self.plan.sparsities)
        start = str(Path(dense.path).absolute())
        seeds = [own_seeds(self.recipe.seed, phase, m) for phase in range(n)]

        def chain(name: str, plan: Plan, i: int) -> Chain:
            folder = str((self.around.folder.path / f"chain-{name}").absolute())
            return Chain(start, folder, plan, tuple(s[i] for s in seeds), self.around.jobs.device)

        longer = dataclasses.replace(self.plan, epochs=m * self.plan.epochs)
        chains = {f"imp-{i}": chain(f"imp-{i}", self.plan, i) for i in range(m)}
        return {**chains, "imp-long": chain("imp-long", longer, 0)}

    def _repruned(self, models: Sequence[Checkpoint]) -> Mixture:
        """The average of independent models, pruned back; its own masks play no part."""
        given, last = Ingredients(models), self.plan.sparsities[-1]
        back = prune(Mixture(given), self.plan.names, self.plan.selector, last, None)
        return Mixture(given, mask=back.mask)


def mean_scores(
    evaluator: Evaluator, models: Sequence[Checkpoint], splits: Sequence[str] | None = None
) -> dict[str, Score]:
    """The mean score of `models` by split: the expected score of one drawn at random.

    Intervals are over examples, whose scores are averaged over the models first; metrics that are
    no means have none.
    """
    every = [evaluator.scores(model, splits) for model in models]
    names = list(evaluator.task.splits if splits is None else splits)
    values: dict[str, Any] = {}
    for split in names:
        parts = [evaluator.predictions(model, split).per_example for model in models]
        if all(part is not None for part in parts):
            values[split] = np.mean(cast("list[Any]", parts), axis=0)
    found: dict[str, Score] = {}
    for split, first in every[0].items():
        mean = float(np.mean([scores[split].value for scores in every]))
        low, high = _interval(evaluator, split, names, values)
        found[split] = dataclasses.replace(first, value=mean, low=low, high=high)
    return found


def _interval(
    evaluator: Evaluator, split: str, names: Sequence[str], values: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    if split in values:
        return bootstrap_mean(values[split], seed=evaluator.seed)
    splits = evaluator.task.splits
    shifts = {s: values[s] for s in shifts_among(dict.fromkeys(names), splits) if s in values}
    if split != SHIFT_AVERAGE or not shifts:
        return None, None
    _, low, high = shift_average(shifts, splits, seed=evaluator.seed)
    return low, high
