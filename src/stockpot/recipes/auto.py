"""Every recipe that applies, in one table; the best on held-out data is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

from stockpot._options import option
from stockpot.analysis.explanations import Finding, expected_collapse, explain
from stockpot.errors import MaskMismatchError, RecipeError, StockpotError
from stockpot.evaluate.compare import Predictions, difference, p_value
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Score
from stockpot.evaluate.task_evaluator import require_outputs
from stockpot.formats.base import Checkpoint
from stockpot.recipes.auto_details import (
    CANDIDATES,
    FURTHER,
    AutoDetails,
    AutoRow,
    Comparison,
    comparisons,
    without_own,
)
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.ensembles import EnsembleResult, ensemble, greedy_ensemble
from stockpot.recipes.gain import require_categories, worse_categories
from stockpot.recipes.greedy import Greedy, Pruned, optimism_among, tried_in_full
from stockpot.recipes.interpolation_details import WiseFTDetails
from stockpot.recipes.learned import Learned, LearnedDetails
from stockpot.recipes.learned.recipe import divide
from stockpot.recipes.simple import BestSingle, Uniform
from stockpot.recipes.soup import Soup
from stockpot.recipes.wise_ft import GRID, WiseFT


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A soup that was tried, with its predictions and its value on the data that decide.

    `order` sorts candidates, the simplest first. `scores` are what is reported. `shares` are those
    of the ingredients in the tuned end of an interpolation.
    """

    name: str
    order: tuple[int, int, int]
    soup: Soup
    predictions: Predictions
    value: float
    scores: Mapping[str, Score | None]
    shares: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """What is reported on, what recipes are cooked on, and what decides among them.

    They are one context unless a share of the held-out data is kept for the last decision.
    """

    whole: RecipeContext
    cooking: RecipeContext
    deciding: RecipeContext

    @property
    def n_final(self) -> int | None:
        """Examples that decide and that no recipe sees; None where all do both."""
        if self.deciding is self.whole:
            return None
        evaluator, split = self.deciding.scoring(Auto.name)
        return evaluator.n_examples(split)

    @classmethod
    def of(cls, context: RecipeContext, share: float, *, seed: int) -> _Stages:
        """All of the held-out data for both, or `share` of it for the last decision alone."""
        if share == 0:
            return cls(whole=context, cooking=context, deciding=context)
        given, split = context.choosing(Auto.name)
        evaluator = require_outputs(given, "a share of the held-out data that decides")
        parts = divide(evaluator.n_examples(split), share, seed=seed)
        cooking, deciding = (
            RecipeContext(
                ingredients=context.ingredients,
                evaluator=evaluator.on_part(split, part),
                choose_on=split,
                dtype=context.dtype,
                report=False,
            )
            for part in parts
        )
        return cls(whole=context, cooking=cooking, deciding=deciding)


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(","))


_NONE_KEEPS = (
    "every recipe loses to the base in some category beyond noise, so the constraint chose "
    "nothing: where categories count, keep the base"
)
_USUAL = tuple(recipe.name for recipe in CANDIDATES)


@final
@dataclass(frozen=True, kw_only=True)
class Auto(Recipe):
    """Cook best single, uniform, WiSE-FT, greedy, pruned, learned; keep the simplest of the best.

    The order of simplicity is that of the list; ties always go to the simpler. WiSE-FT of each soup
    needs a base. Ensembles stand in the table and are never chosen. A recipe that cannot be cooked
    leaves a row that says why. Whether the winner is better than the best single ingredient is
    another question, which the soup's `gain` answers on data that did not choose.

    Attributes:
        recipes: names of the recipes that are tried, best-single always. Model Stock, SLERP (of two
            ingredients) and task arithmetic, its scale searched, are tried where they are named;
            soups of these take no part in WiSE-FT.
        prefer: `"simple"`: the simplest that is not worse than the best by more than noise (the
            95 % interval of their paired difference on the data that chooses holds 0); `"score"`:
            the best score there. The same where scores have no examples behind them.
        accept: of greedy and pruned.
        alphas: grid of WiSE-FT.
        learned: fit a learned soup too, by model; it takes gradients, so not with `--eval`.
        ensembles: score the ensembles too.
        keep_categories: take no soup that is worse than the base (without one, than the best
            single) in a category of the data that decides, by more than noise. WiSE-FT then takes
            the best point that is not.
        final_share: share of the held-out data that no recipe sees, and that makes the last
            decision; 0 for all of it in both. What decides is then no better than it seems, and
            every recipe has fewer examples to choose on.
        seed: of random choices.
    """

    name = "auto"
    title = "Every recipe that applies"
    command = "auto"
    summary = "Try every recipe and keep the simplest of the best."
    about = (
        "Shows best single, uniform, WiSE-FT (with --base), greedy, pruned and learned soups and "
        "the ensembles in one table. p is that of no difference to the best single checkpoint on "
        "the data that chose."
    )
    examples = (
        "stockpot auto runs/ --task handwriting --base base.safetensors -o soup.safetensors",
        "stockpot auto runs/ --task my_task.py:task -o soup/ --prefer score",
    )
    details_type = AutoDetails

    recipes: tuple[str, ...] = option(
        _USUAL,
        metavar="NAMES",
        parse=_names,
        help="What to try, such as greedy,model-stock; best-single always.",
    )
    prefer: Literal["simple", "score"] = option(
        "simple", help="The simplest recipe within noise of the best score, or the best score."
    )
    accept: Literal["ge", "gt"] = option("ge", help="Of greedy and pruned: ties or not.")
    alphas: tuple[float, ...] = option(GRID, metavar="GRID", help="Points of WiSE-FT, with --base.")
    learned: bool = option(True, help="Fit a learned soup too.")
    ensembles: bool = option(True, help="Score them too; never chosen.")
    keep_categories: bool = option(
        False, help="Take nothing that loses to the base in a category, beyond noise."
    )
    final_share: float = option(
        0.0, help="Of the held-out data, kept from all recipes for the last decision."
    )
    seed: int = option(0, help="Of orders, of bootstrap intervals, and of the share.")

    def solve(self, context: RecipeContext) -> Solution:
        """Cook everything and choose."""
        if not 0 <= self.final_share < 1:
            raise RecipeError(f"final_share is {self.final_share}, expected at least 0, below 1")
        _require_known(self.recipes)
        stages = _Stages.of(context, self.final_share, seed=self.seed)
        evaluator, split = stages.deciding.choosing(self.name)
        warned = _before_scoring(context)
        if self.keep_categories:
            require_categories(evaluator, [split])
        tried, failed = self._tried(stages)
        lost = self._lost(stages, tried)
        allowed = [one for one in tried if not lost.get(one.name)]
        ahead, chosen = self._choose(evaluator, split, allowed or tried)
        single = tried[0].predictions
        rows = [
            replace(
                _row(one, single, evaluator),
                chosen_from=one in allowed or not allowed,
                reason=lost.get(one.name, ""),
            )
            for one in tried
        ]
        candidates = [one.predictions for one in tried]
        if stages.n_final is None:
            candidates = [*context.singles(self.name).values(), *self._scored(context, tried)]
        soup = chosen.soup
        return Solution(
            mixture=soup.mixture,
            selected=soup.selected,
            steps=soup.steps,
            details=AutoDetails(
                chosen=chosen.name,
                ahead=ahead.name,
                table=(
                    *rows,
                    *failed,
                    *self._baselines(stages, single),
                    *_with_own_statistics(stages, tried[0]),
                ),
                optimism=optimism_among(evaluator, candidates),
                n_final=stages.n_final,
                reasons=tuple(_reasons(stages.deciding, tried)),
                compared=_compared(stages, tried),
                winner=without_own(type(soup.details), soup.details.to_json()),
            ),
            notes=(*soup.notes, *warned, *(() if allowed else (_NONE_KEEPS,))),
            examples=soup.examples_evaluated,
            examples_plain=soup.examples_plain,
            examples_calibration=soup.examples_calibration,
            scores=chosen.scores,
            coefficients=soup.coefficients,
            batchnorm=soup.batchnorm,
        )

    def _tried(self, stages: _Stages) -> tuple[list[_Candidate], list[AutoRow]]:
        """Every soup that could be cooked, the simplest first; and rows of the others."""
        found: list[_Candidate] = []
        failed: list[AutoRow] = []
        context = stages.cooking
        for recipe in (*CANDIDATES, *FURTHER):
            if recipe is WiseFT or not self._applies(recipe, context):
                continue
            try:
                soup = self._configured(recipe).cook_within(context)
            except StockpotError as error:
                # Without the best single there is nothing to compare with, or to choose from.
                if recipe is BestSingle:
                    raise
                failed.append(AutoRow(recipe=recipe.name, scores={}, reason=_first_line(error)))
                continue
            found.append(_candidate(stages, _name(soup), (_simplicity(recipe), 0, 0), soup))
        if context.ingredients.base is not None and _named(WiseFT, self.recipes):
            lines, rows = self._lines(stages, [one for one in found if _by_model(one.soup)])
            found += lines
            failed += rows
        return sorted(found, key=lambda one: one.order), failed

    def _lines(
        self, stages: _Stages, soups: list[_Candidate]
    ) -> tuple[list[_Candidate], list[AutoRow]]:
        """WiSE-FT of each of the soups."""
        found: list[_Candidate] = []
        for one in soups:
            weights = one.soup.mixture.coefficients.vectors[""]
            name = WiseFT.name if one.name == BestSingle.name else f"{WiseFT.name}-{one.name}"
            recipe = replace(self._configured(WiseFT), weights=weights, curve=False)
            try:
                soup = recipe.cook_within(stages.cooking)
            except MaskMismatchError:
                break  # between a dense base and pruned models there are only dense ones
            except StockpotError as error:
                return found, [AutoRow(recipe=name, scores={}, reason=_first_line(error))]
            place = one.order[0]
            order = (max(place, _simplicity(WiseFT)), 1, place)
            found.append(_candidate(stages, name, order, soup, weights))
        return found, []

    def _lost(self, stages: _Stages, tried: list[_Candidate]) -> dict[str, str]:
        """Name of a candidate → the categories in which it loses; empty without the constraint."""
        if not self.keep_categories:
            return {}
        evaluator, split = stages.deciding.choosing(self.name)
        base = stages.whole.ingredients.base
        model, name = (tried[0].soup.scored_as, tried[0].name) if base is None else (base, "base")
        found = {
            one.name: worse_categories(evaluator, one.soup.scored_as, model, split) for one in tried
        }
        return {one: f"worse than {name}: {', '.join(lost)}" for one, lost in found.items() if lost}

    def _applies(self, recipe: type[Recipe], context: RecipeContext) -> bool:
        if recipe is not BestSingle and not _named(recipe, self.recipes):
            return False
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

    def _choose(
        self, evaluator: Evaluator, split: str, tried: list[_Candidate]
    ) -> tuple[_Candidate, _Candidate]:
        """The one with the best score, and the one that is taken.

        `simple` keeps those within noise of the best by the first metric, of them those within
        noise of their best by the next, and so on; and takes the simplest of the rest.
        """
        best = max(tried, key=lambda one: evaluator.standing(one.predictions, split))
        if self.prefer == "score":
            return best, best
        rest = _within_noise(evaluator, split, tried, best)
        for metric in evaluator.then:
            by = evaluator.by_metric(metric)
            seen = [
                replace(one, predictions=by.from_outputs(one.predictions.outputs, split))
                for one in rest
            ]
            ahead = max(seen, key=lambda one: by.standing(one.predictions, split))
            names = {one.name for one in _within_noise(by, split, seen, ahead)}
            rest = [one for one in rest if one.name in names]
        return best, rest[0]

    def _scored(self, context: RecipeContext, tried: list[_Candidate]) -> list[Predictions]:
        """Predictions of all that was scored in full on the way to the soups, and of them."""
        evaluator, split = context.choosing(self.name)
        found: list[Predictions] = []
        for one in tried:
            soup, given = one.soup, one.soup.mixture.ingredients
            shares = one.shares
            mixtures = [soup.scored_as]
            if soup.recipe in (Greedy.name, Pruned.name):
                mixtures += tried_in_full(context, soup)
            elif isinstance(soup.details, WiseFTDetails):
                mixtures += [
                    context.like(given, [*(p.alpha * share for share in shares), 1.0 - p.alpha])
                    for p in soup.details.curve
                ]
            found += [evaluator.predictions(mixture, split) for mixture in mixtures]
        return found

    def _baselines(self, stages: _Stages, single: Predictions) -> list[AutoRow]:
        context = stages.whole
        evaluator, split = context.choosing(self.name)
        decider, _ = stages.deciding.choosing(self.name)
        splits = list(evaluator.task.splits) if context.report else [split]
        found: list[AutoRow] = []
        base = context.ingredients.base
        if base is not None:
            p = p_value(decider.predictions(base, split), single, seed=evaluator.seed)
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
            # Members were chosen on all held-out data: no p where a part of it decides.
            own = result.predictions[split] if stages.n_final is None else None
            p = p_value(own, single, seed=evaluator.seed)
            found.append(
                AutoRow(recipe=name, scores=result.scores, p_value=p, models=k, ingredients=k)
            )
        return found


def _within_noise(
    evaluator: Evaluator, split: str, tried: list[_Candidate], best: _Candidate
) -> list[_Candidate]:
    """`best`, and those whose paired difference to it is within noise, in their order."""
    found = {
        one.name: difference(best.predictions, one.predictions, split, seed=evaluator.seed)
        for one in tried
    }
    return [
        one
        for one in tried
        if one is best or ((gap := found[one.name]) is not None and gap.within_noise)
    ]


def _compared(stages: _Stages, tried: list[_Candidate]) -> tuple[Comparison, ...]:
    """The candidates and the base by metric and by category."""
    evaluator, split = stages.deciding.choosing(Auto.name)
    found = {one.name: one.predictions for one in tried}
    base = stages.whole.ingredients.base
    if base is not None:
        found["base"] = evaluator.predictions(base, split)
    return tuple(comparisons(evaluator, found))


def _with_own_statistics(stages: _Stages, single: _Candidate) -> list[AutoRow]:
    """Base and best single model once more, with the BatchNorm statistics of their files.

    Nothing where the table's policy leaves them theirs.
    """
    context = stages.whole
    evaluator, split = context.choosing("auto")
    decider = stages.deciding.choosing("auto")[0].with_batchnorm("averaged")
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
            p_value=p_value(
                decider.predictions(model, split), single.predictions, seed=evaluator.seed
            ),
        )
        for name, model in models.items()
        if model is not None and evaluator.recalibrates(model)
    ]


def _named(recipe: type[Recipe], names: tuple[str, ...]) -> bool:
    """Whether a recipe is among `names`, by its own or by that of its command."""
    return recipe.name in names or recipe.command in names


def _require_known(names: tuple[str, ...]) -> None:
    known = (*CANDIDATES, *FURTHER)
    for name in names:
        if not any(_named(recipe, (name,)) for recipe in known):
            expected = ", ".join(recipe.name for recipe in known)
            raise RecipeError(f"auto does not try {name!r}; expected some of {expected}")


def _candidate(
    stages: _Stages,
    name: str,
    order: tuple[int, int, int],
    soup: Soup,
    shares: tuple[float, ...] = (),
) -> _Candidate:
    evaluator, split = stages.deciding.choosing(Auto.name)
    predictions = evaluator.predictions(soup.scored_as, split)
    apart = stages.n_final is not None
    return _Candidate(
        name=name,
        order=order,
        soup=soup,
        predictions=predictions,
        value=evaluator.score_of(predictions, split, name=name, interval=False).value,
        scores=stages.whole.scores(soup.scored_as) if apart else soup.scores,
        shares=shares,
    )


def _name(soup: Soup) -> str:
    """The recipe, and what it took in the end where that is another one's soup."""
    if isinstance(soup.details, LearnedDetails) and soup.details.taken != Learned.name:
        return f"{Learned.name} (took {soup.details.taken})"
    return soup.recipe


def _by_model(soup: Soup) -> bool:
    """Whether it is a plain recipe's, with one coefficient for each ingredient."""
    return soup.recipe in _USUAL and soup.recipe != Learned.name


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _row(one: _Candidate, single: Predictions, evaluator: Evaluator) -> AutoRow:
    return AutoRow(
        recipe=one.name,
        scores=one.scores,
        coefficients=one.soup.coefficients,
        p_value=p_value(one.predictions, single, seed=evaluator.seed),
        ingredients=len(one.soup.selected),
        chosen_from=True,
    )


def _simplicity(recipe: type[Recipe]) -> int:
    return len(CANDIDATES) if recipe.simplicity is None else recipe.simplicity


def _before_scoring(context: RecipeContext) -> list[str]:
    """What the weights alone say against the uniform soup."""
    far = expected_collapse(context.ingredients)
    return [f"warning: the uniform soup will probably collapse: {far}"] if far else []


def _reasons(context: RecipeContext, tried: list[_Candidate]) -> list[Finding]:
    """Why greedy kept one or uniform collapsed; empty where neither did."""
    evaluator, split = context.choosing(Auto.name)
    if len(context.ingredients) < 2:
        return []
    by_name = {one.name: one for one in tried}
    ranking = context.ranking(Auto.name)
    uniform, greedy = by_name.get(Uniform.name), by_name.get(Greedy.name)
    worst = ranking[-1][1]
    collapsed = uniform is not None and evaluator.metric.better(worst, uniform.value)
    alone = greedy is not None and len(greedy.soup.selected) == 1
    if not (collapsed or alone):
        return []
    return explain(
        context.ingredients,
        [i for i, _ in ranking],
        evaluator=evaluator,
        split=split,
        mix=context.mixture,
    )
