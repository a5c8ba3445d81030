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
from stockpot.mixing.mask import Mask
from stockpot.recipes.ensembles import ensemble
from stockpot.recipes.soup import Soup
from stockpot.train.sparse.jobs import Chain, Plan, own_seeds, prune, suffix_of
from stockpot.train.sparse.options import SparseBaseline, SparseOptions
from stockpot.train.sparse.surroundings import Surroundings, qualities


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Makes and scores the baselines of one sparse soup; what is made stays in its folder."""

    around: Surroundings
    plan: Plan
    recipe: SparseOptions

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
        kept = (soup.mixture.read(name) for name in self.plan.names)
        sparsity = Mask.of_nonzero(dict(zip(self.plan.names, kept, strict=True))).sparsity
        best = candidates[quality.index(max(quality))]
        together = ensemble(evaluator, candidates, splits=splits)

        def row(model: Checkpoint, epochs: int, s: float = sparsity) -> SparseBaseline:
            return SparseBaseline(
                scores=scores_to_json(self.around.scores(model)), sparsity=s, epochs=epochs,
                models=1, quality=self.around.quality(model),
            )  # fmt: skip

        mean = scores_to_json(mean_scores(evaluator, candidates, splits))
        return {
            "dense": row(dense, 0, 0.0),
            "soup": SparseBaseline(
                scores=scores_to_json(soup.scores), sparsity=sparsity, epochs=each * m, models=1,
                quality=self.around.quality(soup.mixture),
            ),
            "best-candidate": row(best, each * m),
            "mean-candidate": SparseBaseline(
                scores=mean, sparsity=sparsity, epochs=each * m, models=1
            ),
            "imp": row(models["imp-0"], each),
            f"imp-{m}x": row(models["imp-long"], each * m),
            "imp-reprune": row(repruned, each * m),
            "ensemble": SparseBaseline(
                scores=scores_to_json(together.scores), sparsity=sparsity, epochs=each * m,
                models=m, quality=qualities(together.predictions),
            ),
        }  # fmt: skip

    def _quality(self, model: Checkpoint) -> float:
        score = self.around.evaluator.score(model, self.around.split)
        return score.quality(score.value)

    def _chains(self, dense: Checkpoint) -> dict[str, Chain]:
        m, n = self.recipe.n_candidates, len(self.plan.sparsities)
        start = str(Path(dense.path).absolute())
        seeds = [own_seeds(self.recipe.seed, phase, m) for phase in range(n)]

        def chain(name: str, plan: Plan, i: int) -> Chain:
            folder = str((self.around.folder.path / f"chain-{name}").absolute())
            own = tuple(s[i] for s in seeds)
            device, suffix = self.around.jobs.device, suffix_of(dense)
            return Chain(start, folder, plan, own, device, suffix)

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
