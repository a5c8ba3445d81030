"""What a sparse soup is held against, at the same sparsity and with what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stockpot._types import JSON, Progress
from stockpot.evaluate.evaluator import SHIFT_AVERAGE, Evaluator, scores_to_json
from stockpot.evaluate.intervals import bootstrap_mean
from stockpot.evaluate.intervals import shift_average as average_over_shifts
from stockpot.evaluate.task import Role, Score
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing import Mixture
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes.base import Kitchen
from stockpot.recipes.ensembles import ensemble
from stockpot.recipes.soup import Soup
from stockpot.train.sparse.phases import Chain, Crew, Plan, own_seeds, prune

if TYPE_CHECKING:
    from stockpot.train.sparse.pipeline import SparseSoup


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Makes and scores the baselines of one sparse soup; what is made stays in `folder`."""

    kitchen: Kitchen
    crew: Crew
    plan: Plan
    folder: Path
    progress: Progress

    def table(self, dense: Checkpoint, soup: Soup, recipe: SparseSoup) -> dict[str, JSON]:
        """`{name: {scores, sparsity, epochs, models}}`, the soup itself among them.

        `epochs` are those of all retraining that it took, `models` the forward passes of one
        prediction. `imp-reprune` averages as many independent IMP models as the soup has
        candidates, and prunes the average back to the target.
        """
        m, n = recipe.n_candidates, len(self.plan.sparsities)
        each = self.plan.epochs * n
        judge, split = self.kitchen.scoring("baselines")
        candidates = list(soup.mixture.ingredients)
        best = max(
            range(len(candidates)), key=lambda i: (_quality(judge, candidates[i], split), -i)
        )
        chains = self._chains(dense, recipe)
        self.crew.work(chains, self.progress, "baselines")
        models = {name: open_checkpoint(chain.out) for name, chain in chains.items()}
        repruned = self._repruned([models[f"imp-{i}"] for i in range(m)])
        sparsity = self.plan.sparsities[-1]
        rows: dict[str, tuple[Mapping[str, Score | None], float, int, int]] = {
            "dense": (self._scores(dense), 0.0, 0, 1),
            "soup": (soup.scores, sparsity, each * m, 1),
            "best-candidate": (self._scores(candidates[best]), sparsity, each * m, 1),
            "mean-candidate": (self._mean(candidates), sparsity, each * m, 1),
            "imp": (self._scores(models["imp-0"]), sparsity, each, 1),
            f"imp-{m}x": (self._scores(models["imp-long"]), sparsity, each * m, 1),
            "imp-reprune": (self._scores(repruned), sparsity, each * m, 1),
            "ensemble": (
                ensemble(judge, candidates, splits=self._splits).scores, sparsity, each * m, m,
            ),
        }  # fmt: skip
        return {
            name: {
                "scores": scores_to_json(scores), "sparsity": s, "epochs": epochs, "models": k,
            }
            for name, (scores, s, epochs, k) in rows.items()
        }  # fmt: skip

    @property
    def _splits(self) -> list[str] | None:
        _, split = self.kitchen.scoring("baselines")
        return None if self.kitchen.report else [split]

    def _scores(self, model: Checkpoint | Mixture) -> Mapping[str, Score]:
        judge, _ = self.kitchen.scoring("baselines")
        return judge.scores(model, self._splits)

    def _mean(self, candidates: Sequence[Checkpoint]) -> Mapping[str, Score]:
        judge, _ = self.kitchen.scoring("baselines")
        return mean_scores(judge, candidates, self._splits)

    def _chains(self, dense: Checkpoint, recipe: SparseSoup) -> dict[str, Chain]:
        m, n = recipe.n_candidates, len(self.plan.sparsities)
        start = str(Path(dense.path).absolute())
        seeds = [own_seeds(recipe.seed, phase, m) for phase in range(n)]

        def chain(name: str, plan: Plan, i: int) -> Chain:
            folder = str((self.folder / f"chain-{name}").absolute())
            return Chain(start, folder, plan, tuple(s[i] for s in seeds), self.crew.device)

        longer = dataclasses.replace(self.plan, epochs=m * self.plan.epochs)
        chains = {f"imp-{i}": chain(f"imp-{i}", self.plan, i) for i in range(m)}
        return {**chains, "imp-long": chain("imp-long", longer, 0)}

    def _repruned(self, models: Sequence[Checkpoint]) -> Mixture:
        """The average of independent models, pruned back; its own masks play no part."""
        given, last = Ingredients(models), self.plan.sparsities[-1]
        back = prune(Mixture(given), self.plan.names, self.plan.selector, last, None)
        return Mixture(given, mask=back.mask)


def _quality(judge: Evaluator, model: Checkpoint, split: str) -> float:
    value = judge.score(model, split).value
    return value if judge.metric.higher_is_better else -value


def mean_scores(
    judge: Evaluator, models: Sequence[Checkpoint], splits: Sequence[str] | None = None
) -> dict[str, Score]:
    """The mean score of `models` by split: what one of them, drawn at random, is worth.

    Intervals are over examples, whose scores are averaged over the models first; metrics that are
    no means have none.
    """
    every = [judge.scores(model, splits) for model in models]
    names = list(judge.task.splits if splits is None else splits)
    values: dict[str, Any] = {}
    for split in names:
        parts = [judge.predictions(model, split).per_example for model in models]
        if all(part is not None for part in parts):
            values[split] = np.mean(cast("list[Any]", parts), axis=0)
    found: dict[str, Score] = {}
    for split, first in every[0].items():
        mean = float(np.mean([scores[split].value for scores in every]))
        low, high = _interval(judge, split, names, values)
        found[split] = dataclasses.replace(first, value=mean, low=low, high=high)
    return found


def _interval(
    judge: Evaluator, split: str, names: Sequence[str], values: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    if split in values:
        return bootstrap_mean(values[split], seed=judge.seed)
    shifts = {s: values[s] for s in names
              if s in values and judge.task.splits[s].role is Role.SHIFT}  # fmt: skip
    if split != SHIFT_AVERAGE or not shifts:
        return None, None
    images = {s: i for s in shifts if (i := judge.task.splits[s].images) is not None}
    _, low, high = average_over_shifts(shifts, images=images, seed=judge.seed)
    return low, high
