"""What `Auto` has to say: a row for every recipe, and what was chosen by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from stockpot._figures import AnyFigure, Column, Role, Row, Table
from stockpot._types import JSON
from stockpot.analysis.explanations import Finding
from stockpot.evaluate.compare import Predictions, scores_to_json
from stockpot.evaluate.metrics import ByCategory
from stockpot.evaluate.stats import Optimism
from stockpot.evaluate.task import Score
from stockpot.recipes.base import Recipe
from stockpot.recipes.ensembles import pareto_front
from stockpot.recipes.greedy import Greedy, Pruned
from stockpot.recipes.learned import Learned
from stockpot.recipes.model_stock import ModelStock
from stockpot.recipes.reading import scores_from_json
from stockpot.recipes.result import (
    NOISE_LEVEL,
    Details,
    Names,
    ScoredModel,
    SoupSummary,
    is_share,
)
from stockpot.recipes.selection import optimism_from_json, optimism_to_json
from stockpot.recipes.simple import BestSingle, Uniform
from stockpot.recipes.slerp import Slerp
from stockpot.recipes.soce import SoCE
from stockpot.recipes.task_arithmetic import TaskArithmetic
from stockpot.recipes.wise_ft import WiseFT

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator

CANDIDATES: tuple[type[Recipe], ...] = (BestSingle, Uniform, WiseFT, Greedy, Pruned, Learned)
"""What `Auto` tries where it applies; `Recipe.simplicity` orders them."""
FURTHER: tuple[type[Recipe], ...] = (ModelStock, Slerp, TaskArithmetic, SoCE)
"""What `Auto` tries beside them where it is asked to."""


@dataclass(frozen=True, kw_only=True)
class AutoRow:
    """One line of the table.

    Attributes:
        recipe: its name; that of WiSE-FT of a soup is `"wise-ft-"` and the soup's.
        scores: by split.
        coefficients: as in `Soup`; None for what is no soup.
        p_value: of no difference to the best single ingredient on the split that decides.
        models: forward passes that one prediction costs.
        ingredients: how many take part.
        chosen_from: whether it could have been chosen.
        reason: why it could not be cooked, or chosen; or nothing.
    """

    recipe: str
    scores: Mapping[str, Score | None]
    coefficients: Mapping[str, JSON] | None = None
    p_value: float | None = None
    models: int = 1
    ingredients: int = 0
    chosen_from: bool = False
    reason: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether p > 0.05; None without a p-value."""
        return None if self.p_value is None else self.p_value > NOISE_LEVEL

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on, and costs."""
        return {
            "recipe": self.recipe,
            "scores": scores_to_json(self.scores),
            "coefficients": None if self.coefficients is None else dict(self.coefficients),
            "p_value": self.p_value,
            "within_noise": self.within_noise,
            "models": self.models,
            "ingredients": self.ingredients,
            "chosen_from": self.chosen_from,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, higher_is_better: bool) -> AutoRow:
        """The value that `to_json` was made from."""
        own = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        scores = scores_from_json(data["scores"], higher_is_better=higher_is_better)
        return cls(**{**own, "scores": scores})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates by several metrics, or in several categories, on the data that decide.

    Attributes:
        by: `"metric"` or `"category"`.
        columns: names of the metrics, or of the categories.
        higher_is_better: for each column, whether more is better.
        values: candidate → a value for each column.
    """

    by: Literal["metric", "category"]
    columns: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    values: Mapping[str, tuple[float, ...]]

    @property
    def front(self) -> tuple[str, ...]:
        """The candidates that no other one equals in every column and betters in one."""
        signs = [1 if more else -1 for more in self.higher_is_better]
        return pareto_front(
            {
                name: [sign * value for sign, value in zip(signs, row, strict=True)]
                for name, row in self.values.items()
            }
        )

    def to_json(self) -> dict[str, JSON]:
        """All fields, a row for each candidate, and whether it is on the front."""
        front = self.front
        return {
            "by": self.by,
            "columns": list(self.columns),
            "higher_is_better": list(self.higher_is_better),
            "rows": [
                {"recipe": name, "values": list(row), "front": name in front}
                for name, row in self.values.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The value that `to_json` was made from."""
        return cls(
            by=data["by"],
            columns=tuple(data["columns"]),
            higher_is_better=tuple(data["higher_is_better"]),
            values={row["recipe"]: tuple(row["values"]) for row in data["rows"]},
        )

    def table(self, chosen: str, *, percent: bool) -> Table:
        """A row for each candidate; those of the front are marked."""
        front = self.front
        columns = [
            Column(
                name=name if more else f"{name} (less is better)",
                percent=percent if self.by == "category" else is_share(name),
            )
            for name, more in zip(self.columns, self.higher_is_better, strict=True)
        ]
        return Table(
            name=f"by-{self.by}",
            title=f"Candidates by {self.by}",
            explanation=(
                "On the data that chose. On the Pareto front stands what no other candidate equals "
                "in every column and betters in one."
            ),
            # First, because on a phone the last columns are out of sight.
            columns=(Column(name="Pareto front"), *columns),
            rows=tuple(
                Row(
                    name=name,
                    cells=("yes" if name in front else "", *row),
                    role=_role(name),
                    chosen=name == chosen,
                )
                for name, row in self.values.items()
            ),
            first="recipe",
        )


def comparisons(evaluator: Evaluator, found: Mapping[str, Predictions]) -> Iterator[Comparison]:
    """Candidates by every metric that decides, where there are several, and by category."""
    if evaluator.then:
        metrics = (evaluator.metric, *evaluator.then)
        yield Comparison(
            by="metric",
            columns=tuple(metric.name for metric in metrics),
            higher_is_better=tuple(metric.higher_is_better for metric in metrics),
            values={name: tuple(map(one.value, metrics)) for name, one in found.items()},
        )
    parts = {name: one.by_category() for name, one in found.items()}
    categories = tuple(dict.fromkeys(name for own in parts.values() for name in own))
    if len(categories) > 1:
        metric = (
            evaluator.metric.of if isinstance(evaluator.metric, ByCategory) else evaluator.metric
        )
        yield Comparison(
            by="category",
            columns=categories,
            higher_is_better=(metric.higher_is_better,) * len(categories),
            values={
                name: tuple(own[category].value(metric) for category in categories)
                for name, own in parts.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class AutoDetails(Details):
    """What `Auto` has to say.

    Attributes:
        chosen: the row that was taken.
        ahead: the row with the best score on the data that chose; another where the simplest within
            noise of it was taken.
        table: every soup that was tried, and the baselines.
        optimism: how much the score that chose is too good, at least: every model that was scored
            in full is a candidate; not in it are candidates that were rejected early, the scales of
            task arithmetic that were not taken, and the fitting of a learned soup. With `n_final`
            it is that of the last decision alone. None where the metric is no mean.
        n_final: examples that made the last decision and that no recipe saw; None where the same
            data did both.
        reasons: why averaging failed, where greedy kept one or uniform fell below the worst single.
        compared: the candidates by metric, where several decide, and by category.
        winner: the details of the soup that was taken.
    """

    chosen: str
    ahead: str
    table: tuple[AutoRow, ...]
    optimism: Optimism | None = None
    n_final: int | None = None
    reasons: tuple[Finding, ...] = ()
    compared: tuple[Comparison, ...] = ()
    winner: Details

    def to_json(self) -> dict[str, JSON]:
        """The winner's keys, and this one's fields but `winner`."""
        return {
            **self.winner.to_json(),
            "chosen": self.chosen,
            "ahead": self.ahead,
            "table": [row.to_json() for row in self.table],
            "optimism": optimism_to_json(self.optimism),
            "n_final": self.n_final,
            "compared": [one.to_json() for one in self.compared],
            "reasons": [reason.to_json() for reason in self.reasons],
        }

    @property
    def selection_optimism(self) -> Optimism | None:
        """How much the score that chose is too good; None where the metric is no mean."""
        return self.optimism

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """What was chosen, from how many, and why averaging failed."""
        failed = [row for row in self.table if row.reason and not row.scores]
        barred = [row for row in self.table if row.reason and row.scores and not row.chosen_from]
        n, split = len(self.table) - len(failed), summary.chosen_on
        found = [f"Of {n} recipes and baselines, {self.chosen} was chosen on {split}."]
        if self.ahead != self.chosen:
            found.append(
                f"There {self.ahead} is ahead, within noise, and {self.chosen} is simpler: "
                f"prefer='score' (--prefer score) takes {self.ahead}."
            )
        found += [f"{row.recipe} could not be cooked: {row.reason}" for row in failed]
        found += [f"{row.recipe} could not be chosen: {row.reason}" for row in barred]
        if self.n_final is not None:
            found.append(
                f"The last decision was made on {self.n_final} examples of {split} that no "
                "recipe saw."
            )
        elif self.optimism is not None:
            found.append("The selection optimism is a lower bound of that of the whole search.")
        return (
            *found,
            *(
                f"{one.text[:1].upper()}{one.text[1:]}. {one.remedy[:1].upper()}{one.remedy[1:]}."
                for one in self.reasons
            ),
        )

    def models(self, soup: ScoredModel) -> tuple[ScoredModel, ...]:
        """Every row of the table."""
        return tuple(
            ScoredModel(
                name=row.recipe,
                scores=row.scores,
                role=_role(row.recipe),
                chosen=row.recipe == self.chosen,
                coefficients=row.coefficients,
                p_value=row.p_value,
                models=row.models,
                ingredients=row.ingredients,
                note=row.reason,
            )
            for row in self.table
        )

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The candidates by metric and by category, and those of the soup that was taken."""
        scores = [score for row in self.table for score in row.scores.values() if score is not None]
        percent = bool(scores) and is_share(scores[0].metric)
        own = (one.table(self.chosen, percent=percent) for one in self.compared)
        return (*own, *self.winner.tables(names))

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """Those of the soup that was taken."""
        return self.winner.figures(names)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AutoDetails:
        """The value that `to_json` was made from."""
        chosen = data["chosen"]
        name = next(n for n in (WiseFT.name, Learned.name, chosen) if chosen.startswith(n))
        winner = next(
            recipe.details_type for recipe in (*CANDIDATES, *FURTHER) if recipe.name == name
        )
        higher = data.get("direction", "max") == "max"
        return cls(
            chosen=chosen,
            ahead=data.get("ahead", chosen),
            table=tuple(AutoRow.from_json(row, higher_is_better=higher) for row in data["table"]),
            optimism=optimism_from_json(data.get("optimism")),
            n_final=data.get("n_final"),
            reasons=tuple(Finding(**reason) for reason in data.get("reasons", ())),
            compared=tuple(map(Comparison.from_json, data.get("compared", ()))),
            winner=without_own(winner, data),
        )


def without_own(kind: type[Details], data: Mapping[str, Any]) -> Details:
    """The winner's details, but for keys that `AutoDetails` has its own of."""
    own = ("chosen", "ahead", "table", "optimism", "n_final", "reasons", "compared")
    return kind.from_json({key: value for key, value in data.items() if key not in own})


def _role(recipe: str) -> Role:
    if recipe == "base":
        return "base"
    if recipe.endswith("ensemble"):
        return "ensemble"
    if recipe == BestSingle.name:
        return "run"
    return "wise-ft" if recipe.startswith(WiseFT.name) else "soup"
