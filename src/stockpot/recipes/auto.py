"""Every recipe that applies, in one table; the best on held-out data is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stockpot._types import JSON
from stockpot.analysis.explanations import explain
from stockpot.errors import MaskMismatchError, RecipeError
from stockpot.evaluate.compare import Predictions, p_value, scores_to_json
from stockpot.evaluate.evaluator import Evaluator
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import NOISE_LEVEL, Kitchen, Recipe, prepare
from stockpot.recipes.ensembles import EnsembleResult, ensemble, greedy_ensemble
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.learned import Learned
from stockpot.recipes.pruned import Pruned
from stockpot.recipes.selection import ranked
from stockpot.recipes.selection_bias import optimism_to_json
from stockpot.recipes.soup import Soup
from stockpot.recipes.uniform import BestSingle, Uniform
from stockpot.recipes.wise_ft import GRID, WiseFT
from stockpot.tensors.spec import DType

if TYPE_CHECKING:
    from stockpot.evaluate.task import Score, Task


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `p_value` is that of no difference to the best single ingredient on the split that decides;
    `models` the forward passes that inference costs. `soup` is None for what cannot be chosen.
    """

    recipe: str
    scores: Mapping[str, Score | None]
    coefficients: Mapping[str, JSON] | None
    p_value: float | None
    models: int
    n_ingredients: int
    soup: Soup | None
    predictions: Predictions

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on, and costs."""
        noise = None if self.p_value is None else self.p_value > NOISE_LEVEL
        return {
            "recipe": self.recipe,
            "scores": scores_to_json(self.scores),
            "coefficients": None if self.coefficients is None else dict(self.coefficients),
            "p_value": self.p_value,
            "within_noise": noise,
            "models": self.models,
            "ingredients": self.n_ingredients,
            "chosen_from": self.soup is not None,
        }


@dataclass(frozen=True)
class Auto:
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

    prefer: Literal["score", "simple"] = "score"
    accept: Literal["ge", "gt"] = "ge"
    alphas: tuple[float, ...] = GRID
    learned: bool = True
    ensembles: bool = True
    seed: int = 0

    name = "auto"

    def cook(
        self,
        ingredients: Ingredients | Iterable[Source],
        task: Task | None = None,
        *,
        base: Source | None = None,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        on_mismatch: OnMismatch = "error",
        dtype: DType | str | None = None,
        report: bool = True,
    ) -> Soup:
        """Cook everything and choose; see `Recipe.cook`.

        The soup's `extra` holds `chosen`, `table`, `optimism` and, where a soup failed, `reasons`.
        """
        if self.prefer not in ("score", "simple"):
            raise RecipeError(f"prefer is {self.prefer!r}, expected score or simple")
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        rows = self._rows(kitchen)
        chosen = self._choose(kitchen, [row for row in rows if row.soup is not None])
        if chosen.soup is None:
            raise AssertionError("only soups are chosen from")
        extra: dict[str, JSON] = {
            "chosen": chosen.recipe,
            "table": [row.to_json() for row in (*rows, *self._baselines(kitchen, rows))],
            "optimism": _optimism(kitchen, rows),
            "reasons": _reasons(kitchen, rows),
        }
        inner = {k: v for k, v in chosen.soup.extra.items() if k not in extra}
        return replace(chosen.soup, recipe=self, extra={**inner, **extra})

    def _rows(self, kitchen: Kitchen) -> list[Row]:
        recipes: list[tuple[str, Recipe]] = [
            ("best-single", BestSingle()),
            ("uniform", Uniform()),
            ("greedy", Greedy(accept=self.accept, seed=self.seed, explain=False)),
            ("pruned", Pruned(accept=self.accept)),
        ]
        soups = {name: _cook(kitchen, recipe) for name, recipe in recipes}
        single = _predictions(kitchen, soups["best-single"])
        if kitchen.ingredients.base is not None:
            for name in list(soups):
                weights = soups[name].mixture.coefficients.vectors[""]
                label = "wise-ft" if name == "best-single" else f"wise-ft-{name}"
                tuned = WiseFT(alphas=self.alphas, weights=weights, curve=False)
                try:
                    soups[label] = _cook(kitchen, tuned)
                except MaskMismatchError:
                    break  # between a dense base and pruned models there are only dense ones
        evaluator, _ = kitchen.scoring(self.name)
        several = len(kitchen.ingredients) > 1
        if self.learned and evaluator.has_outputs and several:
            soups["learned"] = _cook(kitchen, Learned(seed=self.seed))
        order = sorted(soups, key=_simplicity)
        return [_row(kitchen, name, soups[name], single) for name in order]

    def _choose(self, kitchen: Kitchen, rows: list[Row]) -> Row:
        evaluator, split = kitchen.scoring(self.name)
        best = rows[0]
        for row in rows[1:]:
            if evaluator.metric.better(_value(row, split), _value(best, split)):
                best = row
        if self.prefer == "score":
            return best
        for row in rows:
            p = p_value(best.predictions, row.predictions, seed=evaluator.seed)
            same = _value(row, split) == _value(best, split)
            if same or (p is not None and p > NOISE_LEVEL):
                return row
        return best

    def _baselines(self, kitchen: Kitchen, rows: list[Row]) -> list[Row]:
        evaluator, split = kitchen.scoring(self.name)
        single = rows[0].predictions
        splits = list(evaluator.task.splits) if kitchen.report else [split]
        found: list[Row] = []
        if kitchen.ingredients.base is not None:
            predictions = evaluator.predictions(kitchen.ingredients.base, split)
            scores = evaluator.scores(kitchen.ingredients.base, splits)
            p = p_value(predictions, single, seed=evaluator.seed)
            found.append(Row("base", scores, None, p, 1, 0, None, predictions))
        if not self.ensembles or len(kitchen.ingredients) < 2 or not evaluator.has_outputs:
            return found
        models = [kitchen.uniform([i]) for i in range(len(kitchen.ingredients))]
        results: dict[str, EnsembleResult] = {
            "ensemble": ensemble(evaluator, models, splits=splits),
            "greedy-ensemble": greedy_ensemble(evaluator, models, split, splits=splits),
        }
        for name, result in results.items():
            k = len(result.members)
            predictions = result.predictions[split]
            p = p_value(predictions, single, seed=evaluator.seed)
            found.append(Row(name, result.scores, None, p, k, k, None, predictions))
        return found


def _cook(kitchen: Kitchen, recipe: Recipe) -> Soup:
    return recipe.cook(
        kitchen.ingredients, evaluator=kitchen.evaluator, choose_on=kitchen.choose_on,
        dtype=kitchen.dtype, report=kitchen.report,
    )  # fmt: skip


def _predictions(kitchen: Kitchen, soup: Soup) -> Predictions:
    """Of a soup on the split that decides, as it was scored: known to the journal."""
    evaluator, split = kitchen.scoring("auto")
    return evaluator.predictions(soup.scored_as, split)


def _row(kitchen: Kitchen, name: str, soup: Soup, single: Predictions) -> Row:
    evaluator, _ = kitchen.scoring("auto")
    predictions = _predictions(kitchen, soup)
    return Row(
        name, soup.scores, soup.coefficients, p_value(predictions, single, seed=evaluator.seed), 1,
        len(soup.selected), soup, predictions,
    )  # fmt: skip


def _simplicity(name: str) -> int:
    order = ("best-single", "uniform", "wise-ft", "wise-ft-uniform", "greedy", "wise-ft-greedy",
             "pruned", "wise-ft-pruned", "learned")  # fmt: skip
    return order.index(name)


def _value(row: Row, split: str) -> float:
    score = row.scores[split]
    if score is None:
        raise AssertionError("the split that decides is always scored")
    return score.value


def _optimism(kitchen: Kitchen, rows: list[Row]) -> JSON:
    evaluator, _ = kitchen.scoring("auto")
    return optimism_to_json(evaluator, [row.predictions for row in rows])


def _reasons(kitchen: Kitchen, rows: list[Row]) -> JSON:
    """Why greedy kept one or uniform collapsed; empty where neither did."""
    evaluator, split = kitchen.scoring("auto")
    if len(kitchen.ingredients) < 2:
        return []
    by_name = {row.recipe: row for row in rows}
    ranking = ranked(kitchen, "auto")
    worst = ranking[-1][1]
    collapsed = evaluator.metric.better(worst, _value(by_name["uniform"], split))
    alone = by_name["greedy"].n_ingredients == 1
    if not (collapsed or alone):
        return []
    findings = explain(
        kitchen.ingredients, [i for i, _ in ranking], evaluator=evaluator, split=split,
        mix=kitchen.mixture,
    )  # fmt: skip
    return [finding.to_json() for finding in findings]
