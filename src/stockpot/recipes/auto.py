"""Every recipe that applies, in one table; the best on held-out data is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

from stockpot._figures import AnyFigure, Role, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.analysis.explanations import Finding, explain
from stockpot.errors import MaskMismatchError, RecipeError
from stockpot.evaluate.compare import Predictions, p_value, scores_to_json
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.stats import Optimism
from stockpot.evaluate.task import Score
from stockpot.formats.base import Checkpoint
from stockpot.recipes.base import Recipe, RecipeContext, Solution
from stockpot.recipes.ensembles import EnsembleResult, ensemble, greedy_ensemble
from stockpot.recipes.greedy import Greedy, Pruned, optimism_among
from stockpot.recipes.learned import Learned
from stockpot.recipes.result import (
    NOISE_LEVEL,
    Details,
    Names,
    ScoredModel,
    SoupSummary,
    scores_from_json,
)
from stockpot.recipes.selection import optimism_from_json, optimism_to_json
from stockpot.recipes.simple import BestSingle, Uniform
from stockpot.recipes.soup import Soup
from stockpot.recipes.wise_ft import GRID, WiseFT

CANDIDATES: tuple[type[Recipe], ...] = (BestSingle, Uniform, WiseFT, Greedy, Pruned, Learned)
"""What `Auto` tries where it applies; `Recipe.simplicity` orders them."""


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
    """

    recipe: str
    scores: Mapping[str, Score | None]
    coefficients: Mapping[str, JSON] | None = None
    p_value: float | None = None
    models: int = 1
    ingredients: int = 0
    chosen_from: bool = False

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
        table: every soup that was tried, and the baselines.
        optimism: how much the score that chose is too good; None where the metric is no mean.
        reasons: why averaging failed, where greedy kept one or uniform fell below the worst single.
        winner: the details of the soup that was taken.
    """

    chosen: str
    table: tuple[AutoRow, ...]
    optimism: Optimism | None = None
    reasons: tuple[Finding, ...] = ()
    winner: Details

    def to_json(self) -> dict[str, JSON]:
        """The winner's keys, and `chosen`, `table`, `optimism` and `reasons`."""
        return {
            **self.winner.to_json(),
            "chosen": self.chosen,
            "table": [row.to_json() for row in self.table],
            "optimism": optimism_to_json(self.optimism),
            "reasons": [reason.to_json() for reason in self.reasons],
        }

    @property
    def selection_optimism(self) -> Optimism | None:
        """How much the score that chose is too good; None where the metric is no mean."""
        return self.optimism

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """What was chosen, from how many, and why averaging failed."""
        tried = len(self.table)
        return (
            f"Of {tried} recipes and baselines, {self.chosen} was chosen on {summary.chosen_on}.",
            *(f"{reason.text}. {reason.remedy}." for reason in self.reasons),
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
        name = "wise-ft" if chosen.startswith("wise-ft") else chosen
        winner = next(recipe.details_type for recipe in CANDIDATES if recipe.name == name)
        higher = data.get("direction", "max") == "max"
        return cls(
            chosen=chosen,
            table=tuple(AutoRow.from_json(row, higher_is_better=higher) for row in data["table"]),
            optimism=optimism_from_json(data.get("optimism")),
            reasons=tuple(Finding(**reason) for reason in data.get("reasons", ())),
            winner=_without_own(winner, data),
        )


def _without_own(kind: type[Details], data: Mapping[str, Any]) -> Details:
    """The winner's details, but for keys that `AutoDetails` has its own of."""
    own = ("chosen", "table", "optimism", "reasons")
    return kind.from_json({key: value for key, value in data.items() if key not in own})


def _role(recipe: str) -> Role:
    if recipe == "base":
        return "base"
    if recipe.endswith("ensemble"):
        return "ensemble"
    if recipe == BestSingle.name:
        return "run"
    return "wise-ft" if recipe.startswith(WiseFT.name) else "soup"


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A soup that was tried, and its predictions on the split that decides."""

    name: str
    soup: Soup
    predictions: Predictions


@final
@dataclass(frozen=True, kw_only=True)
class Auto(Recipe):
    """Cook best single, uniform, WiSE-FT, greedy, pruned, learned; keep the best held-out score.

    Ties go to the simpler, in that order. WiSE-FT of each soup needs a base. Ensembles stand in the
    table and are never chosen. Whether the winner is better than the best single ingredient is
    another question: the table has the p-value, and gains within noise are called so.

    Attributes:
        prefer: `"score"`: the best; `"simple"`: the simplest that is not worse than the best by
            more than noise (p > 0.05).
        accept: of greedy and pruned.
        alphas: grid of WiSE-FT.
        learned: fit a learned soup too, by model; it takes gradients, so not with `--eval`.
        ensembles: score the ensembles too.
        seed: of random choices.
    """

    name = "auto"
    title = "Every recipe that applies"
    command = "auto"
    summary = "Try every recipe and keep the best on held-out data."
    about = (
        "Shows best single, uniform, WiSE-FT (with --base), greedy, pruned and learned soups and "
        "the ensembles in one table. p is that of no difference to the best single checkpoint on "
        "the data that chose."
    )
    examples = (
        "stockpot auto runs/ --task handwriting --base base.safetensors -o soup.safetensors",
        "stockpot auto runs/ --task my_task.py:task -o soup/ --prefer simple",
    )
    details_type = AutoDetails

    prefer: Literal["score", "simple"] = option(
        "score", help="The best score, or the simplest recipe within noise of it."
    )
    accept: Literal["ge", "gt"] = option("ge", help="Of greedy and pruned: ties or not.")
    alphas: tuple[float, ...] = option(GRID, metavar="GRID", help="Points of WiSE-FT, with --base.")
    learned: bool = option(True, help="Fit a learned soup too.")
    ensembles: bool = option(True, help="Score them too; never chosen.")
    seed: int = option(0, help="Of orders and of bootstrap intervals.")

    def solve(self, context: RecipeContext) -> Solution:
        """Cook everything and choose."""
        if self.prefer not in ("score", "simple"):
            raise RecipeError(f"prefer is {self.prefer!r}, expected score or simple")
        evaluator, split = context.choosing(self.name)
        tried = self._tried(context)
        chosen = self._choose(evaluator, split, tried)
        single = tried[0].predictions
        rows = [_row(one, single, evaluator) for one in tried]
        soup = chosen.soup
        return Solution(
            mixture=soup.mixture,
            selected=soup.selected,
            steps=soup.steps,
            details=AutoDetails(
                chosen=chosen.name,
                table=(
                    *rows,
                    *self._baselines(context, single),
                    *_with_own_statistics(context, tried[0]),
                ),
                optimism=optimism_among(evaluator, [one.predictions for one in tried]),
                reasons=tuple(_reasons(context, tried)),
                winner=_without_own(type(soup.details), soup.details.to_json()),
            ),
            notes=soup.notes,
            examples=soup.examples_evaluated,
            examples_plain=soup.examples_plain,
            examples_calibration=soup.examples_calibration,
            scores=soup.scores,
            coefficients=soup.coefficients,
            batchnorm=soup.batchnorm,
        )

    def _tried(self, context: RecipeContext) -> list[_Candidate]:
        """Every soup that could be cooked, the simplest first."""
        evaluator, split = context.choosing(self.name)
        soups = {
            recipe.name: context.cook(self._configured(recipe))
            for recipe in CANDIDATES
            if recipe is not WiseFT and self._applies(recipe, context)
        }
        order = {name: (_simplicity(name), 0, 0) for name in soups}
        if context.ingredients.base is not None:
            for name in [name for name in soups if name != Learned.name]:
                weights = soups[name].mixture.coefficients.vectors[""]
                label = WiseFT.name if name == BestSingle.name else f"{WiseFT.name}-{name}"
                line = replace(self._configured(WiseFT), weights=weights, curve=False)
                try:
                    soups[label] = context.cook(line)
                except MaskMismatchError:
                    break  # between a dense base and pruned models there are only dense ones
                place = _simplicity(name)
                order[label] = (max(place, _simplicity(WiseFT.name)), 1, place)
        return [
            _Candidate(
                name=name,
                soup=soups[name],
                predictions=evaluator.predictions(soups[name].scored_as, split),
            )
            for name in sorted(soups, key=order.__getitem__)
        ]

    def _applies(self, recipe: type[Recipe], context: RecipeContext) -> bool:
        if recipe is not Learned:
            return True
        evaluator, _ = context.choosing(self.name)
        return self.learned and evaluator.has_outputs and len(context.ingredients) > 1

    def _configured(self, recipe: type[Recipe]) -> Any:
        """The recipe with those of its options that are options of this one, too."""
        own = {item.name for item in fields(self)}
        names = [item.name for item in fields(recipe)]  # type: ignore[arg-type]  # subclasses are
        shared: dict[str, Any] = {name: getattr(self, name) for name in names if name in own}
        # The reasons of a greedy soup are this table's own.
        return recipe(**shared, **({"explain": False} if "explain" in names else {}))

    def _choose(self, evaluator: Evaluator, split: str, tried: list[_Candidate]) -> _Candidate:
        best = tried[0]
        for one in tried[1:]:
            if evaluator.metric.better(_value(one, split), _value(best, split)):
                best = one
        if self.prefer == "score":
            return best
        for one in tried:
            p = p_value(best.predictions, one.predictions, seed=evaluator.seed)
            same = _value(one, split) == _value(best, split)
            if same or (p is not None and p > NOISE_LEVEL):
                return one
        return best

    def _baselines(self, context: RecipeContext, single: Predictions) -> list[AutoRow]:
        evaluator, split = context.choosing(self.name)
        splits = list(evaluator.task.splits) if context.report else [split]
        found: list[AutoRow] = []
        base = context.ingredients.base
        if base is not None:
            p = p_value(evaluator.predictions(base, split), single, seed=evaluator.seed)
            found.append(AutoRow(recipe="base", scores=evaluator.scores(base, splits), p_value=p))
        if not self.ensembles or len(context.ingredients) < 2 or not evaluator.has_outputs:
            return found
        models = [context.uniform([i]) for i in range(len(context.ingredients))]
        results: dict[str, EnsembleResult] = {
            "ensemble": ensemble(evaluator, models, splits=splits),
            "greedy-ensemble": greedy_ensemble(evaluator, models, split, splits=splits),
        }
        for name, result in results.items():
            k = len(result.members)
            p = p_value(result.predictions[split], single, seed=evaluator.seed)
            found.append(
                AutoRow(recipe=name, scores=result.scores, p_value=p, models=k, ingredients=k)
            )
        return found


def _with_own_statistics(context: RecipeContext, single: _Candidate) -> list[AutoRow]:
    """Base and best single model once more, with the BatchNorm statistics of their files.

    Nothing where the table's policy leaves them theirs.
    """
    evaluator, split = context.choosing("auto")
    splits = list(evaluator.task.splits) if context.report else [split]
    models: dict[str, Checkpoint | None] = {
        "base": context.ingredients.base,
        single.name: single.soup.scored_as,
    }
    own = evaluator.with_batchnorm("averaged")
    return [
        AutoRow(
            recipe=f"{name} (own statistics)",
            scores=own.scores(model, splits),
            p_value=p_value(own.predictions(model, split), single.predictions, seed=evaluator.seed),
        )
        for name, model in models.items()
        if model is not None and evaluator.recalibrates(model)
    ]


def _row(one: _Candidate, single: Predictions, evaluator: Evaluator) -> AutoRow:
    return AutoRow(
        recipe=one.name,
        scores=one.soup.scores,
        coefficients=one.soup.coefficients,
        p_value=p_value(one.predictions, single, seed=evaluator.seed),
        ingredients=len(one.soup.selected),
        chosen_from=True,
    )


def _simplicity(name: str) -> int:
    place = next(recipe.simplicity for recipe in CANDIDATES if recipe.name == name)
    return len(CANDIDATES) if place is None else place


def _value(one: _Candidate, split: str) -> float:
    score = one.soup.scores[split]
    if score is None:
        raise RecipeError(f"{one.name} was not scored on {split}, which decides")
    return score.value


def _reasons(context: RecipeContext, tried: list[_Candidate]) -> list[Finding]:
    """Why greedy kept one or uniform collapsed; empty where neither did."""
    evaluator, split = context.choosing(Auto.name)
    if len(context.ingredients) < 2:
        return []
    by_name = {one.name: one for one in tried}
    ranking = context.ranking(Auto.name)
    worst = ranking[-1][1]
    collapsed = evaluator.metric.better(worst, _value(by_name[Uniform.name], split))
    alone = len(by_name[Greedy.name].soup.selected) == 1
    if not (collapsed or alone):
        return []
    return explain(
        context.ingredients,
        [i for i, _ in ranking],
        evaluator=evaluator,
        split=split,
        mix=context.mixture,
    )
