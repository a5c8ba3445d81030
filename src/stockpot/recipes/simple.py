"""Fixed coefficients: the plain mean, given weights, the best few by score, or the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from stockpot._options import option
from stockpot.errors import RecipeError
from stockpot.mixing import Coefficients, Ingredients, Mixture
from stockpot.mixing.coefficients import group_names
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.data_weighted import fisher_mean, regression_mean


@final
@dataclass(frozen=True, kw_only=True)
class Uniform(Recipe):
    """The mean of all ingredients, of the `top` best on held-out data, or with given `weights`.

    Duplicates count as often as they are given: the mean is that of the arguments.

    Attributes:
        weights: a coefficient for each ingredient, in their order; must sum to 1.
        normalise: divide `weights` by their sum.
        coefficients: `"PATTERN=0.5,0.5"`: other weights for the tensors that match a shell pattern;
            the first that matches counts.
        top: only this many, by score on the split that decides; needs a task.
        weigh: `"fisher"` weighs every element by its Fisher information, `"regmean"` weights of
            linear layers by their inputs, on `n_examples` of the task's training data; see
            `recipes/data_weighted.py`. Other tensors are averaged plainly.
        n_examples: that `weigh` looks at.
        seed: of these examples.
        score_temperature: weights proportional to exp(score / temperature) on the split that
            decides, or to exp(−score / temperature) where less is better (of a loss: LM-Cocktail,
            Xiao et al. 2023, arXiv 2311.13534); needs a task.

    Raises:
        RecipeError: weights for another number of ingredients, or together with `top`.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, "uniform soup".
    """

    name = "uniform"
    title = "Uniform soup"
    command = "average"
    summary = "Average checkpoints: the uniform soup, or a weighted one."
    about = (
        "Reads every input once and writes the output once, block by block: memory does not grow "
        "with the models. The result does not depend on the order of arguments. With --task (or "
        "--eval) it is also scored, and --top can choose what is averaged."
    )
    examples = (
        "stockpot average runs/*.safetensors -o soup.safetensors",
        "stockpot average a/ b/ c/ -o soup/ --weights 0.5,0.3,0.2",
        "stockpot average runs/ -o soup.pt --dtype bf16 --max-memory 1GB",
        "stockpot average llama-a/ llama-b/ -o soup/ --dry-run",
        "stockpot average runs/ -o soup.safetensors --top 5 --task my_task.py:task",
    )
    simplicity = 1

    weights: tuple[float, ...] | None = option(
        None, metavar="1,2,3", help="One coefficient each, in order; default: equal."
    )
    normalise: bool = option(False, needs="weights", help="Divide the weights by their sum.")
    coefficients: tuple[str, ...] = option(
        (), metavar="PATTERN=1,2", help="Other weights for tensors that match a pattern."
    )
    top: int | None = option(
        None,
        metavar="N",
        excludes="weights",
        minimum=1,
        help="Only the N best on held-out data; needs --task.",
    )

    weigh: Literal["fisher", "regmean"] | None = option(
        None, excludes="weights", help="Weigh elements by what they do on training data (--task)."
    )
    n_examples: int = option(512, minimum=1, help="Examples that --weigh looks at.")
    seed: int = option(0, help="Of the examples of --weigh.")
    score_temperature: float | None = option(
        None, metavar="T", excludes="weights", help="Weights exp(score / T) on held-out data."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_temperature is not None and not self.score_temperature > 0:
            raise RecipeError(
                f"score_temperature is {self.score_temperature:g}; expected more than 0"
            )
        chosen = (self.score_temperature, self.weigh, self.top, self.weights)
        if sum(one is not None for one in chosen) > 1 or (self.weigh and self.coefficients):
            raise RecipeError(
                "weights, top, weigh and score_temperature each say how much of each model is "
                "taken: give one of them"
            )
        alone = self.top is None and self.score_temperature is None and not self.normalise
        if self.coefficients and not alone:
            raise RecipeError("coefficients by pattern go with weights alone")
        if self.normalise and self.weights is None:
            raise RecipeError("there are no weights to normalise: give weights")

    @property
    def chooses(self) -> bool:
        """Whether scores say what is averaged, or how much of it."""
        return self.top is not None or self.score_temperature is not None

    def solve(self, context: RecipeContext) -> Solution:
        """Average."""
        if self.score_temperature is not None:
            return self._by_score(context, self.score_temperature)
        if self.weigh is not None:
            return self._by_data(context)
        members = self._members(context)
        selected = [context.paths[i] for i in members]
        if self.coefficients:
            return Solution(mixture=context.mixed(self._by_pattern(context)), selected=selected)
        if self.weights is None:
            return Solution(mixture=context.uniform(members), selected=selected)
        if len(self.weights) != len(context.ingredients):
            raise RecipeError(
                f"{len(self.weights)} weights for {len(context.ingredients)} ingredients; "
                "give one each, in their order"
            )
        shares = Coefficients.per_model(self.weights, normalise=self.normalise)
        return Solution(mixture=context.mixed(shares), selected=selected)

    def _by_score(self, context: RecipeContext, temperature: float) -> Solution:
        evaluator, _ = context.choosing(self.name)
        ranked = context.ranking(self.name)
        best = evaluator.metric.quality(ranked[0][1])
        shares = {
            i: math.exp((evaluator.metric.quality(value) - best) / temperature)
            for i, value in ranked
        }
        vector = [shares.get(i, 0.0) for i in range(len(context.ingredients))]
        return Solution(
            mixture=context.mixed(Coefficients.per_model(vector, normalise=True)),
            selected=[path for path, share in zip(context.paths, vector, strict=True) if share],
            notes=context.duplicate_notes(),
        )

    def _by_data(self, context: RecipeContext) -> Solution:
        weighed = fisher_mean if self.weigh == "fisher" else regression_mean
        values = weighed(context, n_examples=self.n_examples, seed=self.seed)
        plain = context.uniform(range(len(context.ingredients)))
        # Rounded here, once, as the engine does it: a record keeps hashes of what is written.
        rounded = {
            name: Mixture(Ingredients([{name: value}]), dtype=plain[name].dtype).read(name)
            for name, value in values.items()
        }
        return Solution(mixture=plain.with_overrides(rounded), selected=context.paths)

    def _by_pattern(self, context: RecipeContext) -> Coefficients:
        """A vector for each pattern, and one for all other tensors."""
        given = context.ingredients
        vectors: dict[str, tuple[float, ...]] = {}
        for text in self.coefficients:
            pattern, _, numbers = text.partition("=")
            try:
                vectors[pattern] = tuple(float(number) for number in numbers.split(","))
            except ValueError:
                raise RecipeError(
                    f"{text!r}: write coefficients as PATTERN=NUMBER,NUMBER, such as "
                    "'experts.*=0,1'"
                ) from None
        names = [name for name in given.specs if name in given.averaged]
        groups = group_names(names, "model", tied=given.tied, patterns={p: p for p in vectors})
        vectors["model"] = self.weights or (1.0 / len(given),) * len(given)
        short = next((p for p, vector in vectors.items() if len(vector) != len(given)), None)
        if short is not None:
            raise RecipeError(
                f"{len(vectors[short])} coefficients for {short!r} and {len(given)} ingredients; "
                "give one each, in their order"
            )
        return Coefficients.per_group(vectors, group_of=groups)

    def _members(self, context: RecipeContext) -> list[int]:
        everyone = range(len(context.ingredients))
        if self.coefficients:
            return list(everyone)
        if self.weights is not None:
            return [i for i in everyone if i < len(self.weights) and self.weights[i] != 0]
        if self.top is None:
            return list(everyone)
        return [i for i, _ in context.ranking(self.name)][: self.top]


@final
@dataclass(frozen=True, kw_only=True)
class BestSingle(Recipe):
    """The one ingredient with the best score on the split that decides: the baseline of soups."""

    name = "best-single"
    title = "Best single run"
    summary = "The one checkpoint that is best on held-out data."
    simplicity = 0

    def solve(self, context: RecipeContext) -> Solution:
        """Choose one."""
        best, _ = context.ranking(self.name)[0]
        return Solution(mixture=context.uniform([best]), selected=[context.paths[best]])
