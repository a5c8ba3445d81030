"""What `Auto` has to say: a row for every recipe, and what was chosen by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from stockpot._figures import AnyFigure, Role, Table
from stockpot._types import JSON
from stockpot.analysis.explanations import Finding
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.stats import Optimism
from stockpot.evaluate.task import Score
from stockpot.recipes.base import Recipe
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
)
from stockpot.recipes.selection import optimism_from_json, optimism_to_json
from stockpot.recipes.simple import BestSingle, Uniform
from stockpot.recipes.slerp import Slerp
from stockpot.recipes.soce import SoCE
from stockpot.recipes.task_arithmetic import TaskArithmetic
from stockpot.recipes.wise_ft import WiseFT

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
        winner: the details of the soup that was taken.
    """

    chosen: str
    ahead: str
    table: tuple[AutoRow, ...]
    optimism: Optimism | None = None
    n_final: int | None = None
    reasons: tuple[Finding, ...] = ()
    winner: Details

    def to_json(self) -> dict[str, JSON]:
        """The winner's keys, and `chosen`, `table`, `optimism`, `n_final` and `reasons`."""
        return {
            **self.winner.to_json(),
            "chosen": self.chosen,
            "ahead": self.ahead,
            "table": [row.to_json() for row in self.table],
            "optimism": optimism_to_json(self.optimism),
            "n_final": self.n_final,
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
        """Those of the soup that was taken."""
        return self.winner.tables(names)

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
            winner=without_own(winner, data),
        )


def without_own(kind: type[Details], data: Mapping[str, Any]) -> Details:
    """The winner's details, but for keys that `AutoDetails` has its own of."""
    own = ("chosen", "ahead", "table", "optimism", "n_final", "reasons")
    return kind.from_json({key: value for key, value in data.items() if key not in own})


def _role(recipe: str) -> Role:
    if recipe == "base":
        return "base"
    if recipe.endswith("ensemble"):
        return "ensemble"
    if recipe == BestSingle.name:
        return "run"
    return "wise-ft" if recipe.startswith(WiseFT.name) else "soup"
