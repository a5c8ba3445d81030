"""Soup of category experts: the best ingredient of each category, weighted on a grid."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from stockpot._figures import AnyFigure, Axis, Column, Heatmap, Row, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.metrics import ByCategory
from stockpot.evaluate.task import Metric
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.result import Details, Names, SoupSummary

STEPS = 10
"""The grid of weights: tenths, at least one for each expert."""
_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SoCEDetails(Details):
    """What the soup of category experts has to say.

    Attributes:
        experts: path of the ingredient → categories that it is the expert of.
        correlations: for each two categories, how alike they rank the ingredients; None where all
            ingredients have one score. Rows and columns are `categories`.
        categories: by name.
        tried: weights that were scored.
    """

    experts: Mapping[str, tuple[str, ...]]
    categories: tuple[str, ...]
    correlations: tuple[tuple[float | None, ...], ...]
    tried: int

    def to_json(self) -> dict[str, JSON]:
        """`experts`, `categories`, `correlations` and `tried`."""
        return {
            "experts": {path: list(names) for path, names in self.experts.items()},
            "categories": list(self.categories),
            "correlations": [list(row) for row in self.correlations],
            "tried": self.tried,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SoCEDetails:
        """The details in the JSON of a soup."""
        return cls(
            experts={path: tuple(names) for path, names in data["experts"].items()},
            categories=tuple(data["categories"]),
            correlations=tuple(tuple(row) for row in data["correlations"]),
            tried=data["tried"],
        )

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """How many experts there are, and how their weights were found."""
        n = len(self.experts)
        experts = "1 expert" if n == 1 else f"{n} experts"
        return (
            f"Of {len(self.categories)} categories there {'is' if n == 1 else 'are'} {experts}; "
            f"the weights are the best of {self.tried} on {summary.chosen_on}.",
        )

    def tables(self, names: Names) -> tuple[Table, ...]:
        """Who is the expert of what."""
        rows = tuple(
            Row(name=names.get(path, path), cells=(", ".join(own),))
            for path, own in self.experts.items()
        )
        columns = (Column(name="best of all in"),)
        return (
            Table(name="experts", title="Experts", columns=columns, rows=rows, first="checkpoint"),
        )

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """The correlations."""
        return (
            Heatmap(
                name="correlations",
                title="How alike categories rank the checkpoints",
                explanation="Where two are not alike, other checkpoints are the best in each.",
                values=self.correlations,
                rows=self.categories,
                columns=self.categories,
                scale=Axis(name="correlation"),
                least=1.0,
            ),
        )


@final
@dataclass(frozen=True, kw_only=True)
class SoCE(Recipe):
    """Σ wₑ·θₑ over category experts: the best ingredients of categories that rank them unlike.

    The split that decides has categories (`Split.categories`). Two categories are alike where their
    scores of the ingredients correlate; a category that correlates less than `below` with some
    other one takes the ingredient that is best in it as its expert. (The paper goes by the absolute
    correlation; one below 0 calls for two experts all the more.) The weights of the experts are
    tenths, at least one each, with the best mean over all categories; of equal ones the most even.
    A metric that goes by categories itself, such as `"accuracy by worst"`, decides in its place.

    Attributes:
        below: a correlation of two categories below it makes both take an expert.

    Reference: Maiti et al. 2025, arXiv 2511.13254, §3.
    """

    name = "soce"
    title = "Soup of category experts"
    command = "soce"
    summary = "Soup of category experts (SoCE): the best of each, weighted."
    about = (
        "Scores every checkpoint by category (a column of the data), takes the best one of each "
        "category that ranks the checkpoints unlike another, and searches their weights on "
        "held-out data, in steps of a tenth. Shows how alike the categories are."
    )
    examples = ("stockpot soce runs/ --task task.yaml -o soup/",)
    details_type = SoCEDetails
    needs_outputs = True
    simplicity = 5

    below: float = option(0.8, help="Categories that correlate less with another take an expert.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.below <= 1:
            raise RecipeError(f"below is {self.below:g}; expected a correlation, -1 to 1")

    def solve(self, context: RecipeContext) -> Solution:
        """Find the experts and search their weights.

        Raises:
            RecipeError: the split that decides has no categories, or one alone.
        """
        evaluator, split = context.choosing(self.title)
        singles = context.singles(self.title)
        categories, values = _by_category(singles, evaluator.metric, split)
        ranked = [i for i, _ in context.ranking(self.title, singles)]
        found = correlations(np.array([values[i] for i in ranked]))
        notes = context.duplicate_notes()
        experts = self._experts(found, values, ranked)
        if not experts:
            experts = {ranked[0]: []}
            notes.append(
                f"every two categories correlate by {self.below:g} or more, so that they have no "
                "experts of their own: this is the best single checkpoint"
            )
        if len(experts) > STEPS:
            most = Counter({i: len(of) for i, of in experts.items()}).most_common(STEPS)
            notes.append(
                f"there are {len(experts)} experts; the {STEPS} of the most categories take part"
            )
            experts = {i: experts[i] for i in sorted((i for i, _ in most), key=ranked.index)}
        vectors = [
            _vector(len(context.ingredients), experts, shares) for shares in grid(len(experts))
        ]
        decides = _decides(evaluator.metric)
        best, best_key = vectors[0], tuple[float, ...]()
        for number, vector in enumerate(vectors, 1):
            predictions = evaluator.predictions(context.mixture(vector), split)
            key = (
                decides.quality(predictions.value(decides)),
                *evaluator.tie_breakers(predictions, split),
                -sum(w * w for w in vector),
            )
            if key > best_key:
                best, best_key = vector, key
            evaluator.progress(number, len(vectors), "weights")
        examples = len(vectors) * evaluator.n_examples(split) if len(experts) > 1 else 0
        return Solution(
            mixture=context.mixture(best),
            selected=[context.paths[i] for i in experts],
            examples=examples,
            examples_plain=examples,
            notes=notes,
            details=SoCEDetails(
                experts={
                    context.paths[i]: tuple(categories[c] for c in of) for i, of in experts.items()
                },
                categories=categories,
                correlations=tuple(
                    tuple(None if np.isnan(r) else float(r) for r in row) for row in found
                ),
                tried=len(vectors),
            ),
        )

    def _experts(
        self, found: _F64, values: Mapping[int, Sequence[float]], ranked: Sequence[int]
    ) -> dict[int, list[int]]:
        """Ingredient → its categories, in the order of the ranking, which decides ties too."""
        least = np.where(np.isnan(found), np.inf, found)
        np.fill_diagonal(least, np.inf)
        unlike = np.flatnonzero(least.min(1) < self.below)
        expert_of = {c: max(ranked, key=lambda i: values[i][c]) for c in unlike.tolist()}
        return {
            i: own for i in ranked if (own := [c for c, expert in expert_of.items() if expert == i])
        }


def correlations(values: npt.ArrayLike) -> _F64:
    """Pearson correlations (C, C) of categories over models, of scores (models, C).

    Not a number where every model has the same score; 1 on the diagonal else.

    >>> correlations([[0.1, 0.3, 0.5], [0.2, 0.2, 0.5], [0.3, 0.1, 0.5]]).round(2).tolist()
    [[1.0, -1.0, nan], [-1.0, 1.0, nan], [nan, nan, nan]]
    """
    given = np.asarray(values, np.float64)
    centred = given - given.mean(0)
    # Equal scores differ from their mean by rounding alone.
    centred[:, (given == given[0]).all(0)] = np.nan
    norms = np.sqrt((centred**2).sum(0))
    return np.array(centred.T @ centred / np.outer(norms, norms), np.float64)


def grid(n: int) -> list[tuple[int, ...]]:
    """Every way to give `n` experts at least one tenth each, ten in all.

    >>> grid(2)[:3], len(grid(3)), grid(1)
    ([(1, 9), (2, 8), (3, 7)], 36, [(10,)])
    """
    return [
        tuple(np.diff([0, *cuts, STEPS]).tolist())
        for cuts in itertools.combinations(range(1, STEPS), n - 1)
    ]


def _vector(n: int, experts: Iterable[int], shares: Sequence[int]) -> list[float]:
    """Coefficients of `n` ingredients, those of the experts in tenths."""
    vector = [0.0] * n
    for i, share in zip(experts, shares, strict=True):
        vector[i] = share / STEPS
    return vector


def _by_category(
    singles: Mapping[int, Predictions], metric: Metric, split: str
) -> tuple[tuple[str, ...], dict[int, list[float]]]:
    """The categories, and for each ingredient its qualities in them (larger is better)."""
    plain = metric.of if isinstance(metric, ByCategory) else metric
    found = {i: one.by_category() for i, one in singles.items()}
    names = tuple(next(iter(found.values())))
    if len(names) < 2:
        has = "no categories" if not names else f"one category, {names[0]!r}"
        raise RecipeError(
            f"experts are those of categories, and {split} has {has}: give each example its own "
            "(Split(…, categories=[…]), or category: COLUMN in task.yaml)"
        )
    return names, {
        i: [plain.quality(by[name].value(plain)) for name in names] for i, by in found.items()
    }


def _decides(metric: Metric) -> Metric:
    """What weights are chosen by: the metric where it goes by categories, else its mean."""
    return metric if isinstance(metric, ByCategory) else ByCategory(metric, "mean")
