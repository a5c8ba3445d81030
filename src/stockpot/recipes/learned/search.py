"""Fitting the coefficients of learned soups without gradients, where only scores are known.

CMA-ES (Hansen 2016, arXiv 1604.00772) ranks candidates and never compares the sizes of scores, so
an accuracy, which is flat between its steps, and a score with noise are no trouble to it; a simplex
collapses on them. Its random numbers come from a seed and every score goes to the journal before it
is used: a killed search continues by being run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot._optional import require
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.mixing.device_blocks import ingredient_blocks
from stockpot.recipes.learned.objective import (
    FitRecord,
    Fitted,
    Layout,
    Part,
    start_of,
    streamed_names,
)
from stockpot.recipes.learned.optimisers import FitOptions, Parametrisation, parametrisation

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.mixing import Mixture
    from stockpot.recipes.context import RecipeContext


_FIRST_STEP = 0.5
"""Standard deviation of the first candidates: a factor of e^0.5 in a coefficient of a softmax."""


def search(
    options: FitOptions,
    context: RecipeContext,
    evaluator: Evaluator,
    fitting: Part,
    starts: Mapping[str, Mixture],
) -> Fitted:
    """The best coefficients that `options.budget` evaluations find on the fitting split.

    The starts are scored first and the search begins at the better one. Its last evaluation is the
    mean of the distribution it ends with, which is taken where it ties with the best candidate: on
    a score with steps the best of many candidates is partly luck.

    Raises:
        RecipeError: the budget holds no generation of candidates.
        OptionalDependencyError: cma is not installed.
    """
    cma = require("cma", extra="search")
    layout, made = _search_layout(options, context)
    scored = _Scored(layout, made, evaluator, fitting, options.budget)
    begins = {name: start_of(mixture, layout, made).numpy() for name, mixture in starts.items()}
    costs = {name: scored(raw) for name, raw in begins.items()}
    start = min(costs, key=lambda name: costs[name])
    # Numbers of its own: the package would otherwise seed NumPy's global ones.
    rng = np.random.default_rng(options.seed)
    strategy_options = {
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": float("nan"),
        "verbose": -9,
        "verb_log": 0,
    }
    strategy = cma.CMAEvolutionStrategy(begins[start].reshape(-1), 1.0, strategy_options | {
        "CMA_stds": _steps(options.constraint, made, begins[start].shape)})  # fmt: skip
    if scored.n_left < strategy.popsize + 1:
        raise RecipeError(
            f"a budget of {options.budget} evaluations is too small to search "
            f"{begins[start].size} coefficients: give at least "
            f"{len(starts) + strategy.popsize + 1} (--budget), better ten times as many"
        )
    generations: list[JSON] = []
    while scored.n_left >= strategy.popsize + 1 and not strategy.stop():
        candidates = strategy.ask()
        strategy.tell(candidates, scored.all([x.reshape(begins[start].shape) for x in candidates]))
        generations.append(scored.record(len(generations)))
    scored(np.asarray(strategy.result.xfavorite).reshape(begins[start].shape), ties=True)
    generations.append(scored.record(len(generations)))
    record = FitRecord(start=start, epochs={start: generations}, n_evaluations=scored.n)
    return Fitted(scored.mixture(scored.best), record)


class _Scored:
    """Scores of the fitting split as costs; it has state, the best so far and their number."""

    def __init__(
        self, layout: Layout, made: Parametrisation, evaluator: Evaluator, part: Part, budget: int
    ) -> None:
        self._layout, self._made, self._evaluator = layout, made, evaluator
        self._split, self._budget = part.split, budget
        self.n = 0
        self.cost = np.inf
        self.best: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def n_left(self) -> int:
        """Evaluations that the budget still allows."""
        return self._budget - self.n

    def __call__(self, raw: npt.NDArray[np.float64], *, ties: bool = False) -> float:
        """The cost of `raw` (groups, k); remembered if it is the lowest, `ties` included."""
        score = self._evaluator.score(self.mixture(raw), self._split)
        cost = -self._evaluator.metric.quality(score.value)
        # Counted whether or not the journal knew it, so that a resumed search ends where another
        # would have.
        self.n += 1
        if cost < self.cost or (ties and cost == self.cost):
            self.cost, self.best = cost, np.array(raw)
        self._evaluator.progress(self.n, self._budget, "evaluations of the search")
        return cost

    def all(self, raws: list[npt.NDArray[np.float64]]) -> list[float]:
        """The costs of a generation, whose programs run side by side where there are workers."""
        if self._evaluator.n_ahead:
            self._evaluator.score_ahead([self.mixture(raw) for raw in raws], self._split)
        return [self(raw) for raw in raws]

    def mixture(self, raw: npt.NDArray[np.float64]) -> Mixture:
        """The mixture that `raw` stands for."""
        return self._layout.mixture(self._coefficients(raw))

    def record(self, generation: int) -> dict[str, JSON]:
        """What a generation ends with."""
        score = float(self._evaluator.metric.quality(-self.cost))
        return {
            "epoch": generation, "evaluations": self.n, "score": score,
            "coefficients": self._layout.lists(self._coefficients(self.best)),
        }  # fmt: skip

    def _coefficients(self, raw: npt.NDArray[np.float64]) -> torch.Tensor:
        import torch

        return self._made.coefficients(torch.from_numpy(np.array(raw)))


def _search_layout(options: FitOptions, context: RecipeContext) -> tuple[Layout, Parametrisation]:
    given = context.ingredients
    names = streamed_names(given)
    layout = Layout.of(
        context, names, by=options.by, groups=options.groups, any_sum=options.constraint == "free"
    )
    spreads = None
    if options.constraint == "hyperplane":
        blocks = ingredient_blocks([given[i] for i in given.canonical], names)
        spreads = blocks.spreads(layout.row_of, len(layout.index))
    return layout, parametrisation(options.constraint, spreads)


def _steps(constraint: str, made: Parametrisation, shape: tuple[int, ...]) -> Any:
    """First standard deviation of every free number."""
    import torch

    if constraint == "softmax":
        return np.full(shape, _FIRST_STEP).reshape(-1)
    # A coefficient moves by half of what it is in the uniform soup.
    middle = made.start(torch.full(shape, 1 / shape[1], dtype=torch.float64))
    moved = made.start(torch.full(shape, (1 + _FIRST_STEP) / shape[1], dtype=torch.float64))
    return (moved - middle).abs().numpy().reshape(-1)
