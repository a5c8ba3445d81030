"""Fixed coefficients: the plain mean, given weights, or the best few by score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stockpot.errors import RecipeError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.mixing import Coefficients
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import Kitchen, prepare
from stockpot.recipes.selection import ranked
from stockpot.recipes.soup import Soup, serve
from stockpot.tensors.spec import DType

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task


@dataclass(frozen=True)
class Uniform:
    """The mean of all ingredients, of the `top` best on held-out data, or with given `weights`.

    Duplicates count as often as they are given: the mean is that of the arguments.

    Attributes:
        weights: a coefficient for each ingredient, in their order; must sum to 1.
        normalise: divide `weights` by their sum.
        top: only this many, by score on the split that decides; needs a task.

    Raises:
        RecipeError: weights for another number of ingredients, or together with `top`.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, "uniform soup".
    """

    weights: tuple[float, ...] | None = None
    normalise: bool = False
    top: int | None = None

    name = "uniform"

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
        """Average; see `Recipe.cook`."""
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report, chooses=self.top is not None,
        )  # fmt: skip
        members = self._members(kitchen)
        if self.weights is None:
            mixture = kitchen.uniform(members)
        else:
            if len(self.weights) != len(kitchen.ingredients):
                raise RecipeError(
                    f"{len(self.weights)} weights for {len(kitchen.ingredients)} ingredients; "
                    "give one each, in their order"
                )
            shares = Coefficients.per_model(self.weights, normalise=self.normalise)
            mixture = kitchen.mixed(shares)
        return serve(self, kitchen, mixture, selected=members)

    def _members(self, kitchen: Kitchen) -> list[int]:
        everyone = range(len(kitchen.ingredients))
        if self.weights is not None:
            if self.top is not None:
                raise RecipeError("weights and top exclude each other; give one of them")
            return [i for i in everyone if i < len(self.weights) and self.weights[i] != 0]
        if self.top is None:
            return list(everyone)
        if self.top < 1:
            raise RecipeError(f"top is {self.top}, expected at least 1")
        return [i for i, _ in ranked(kitchen, self.name)][: self.top]


@dataclass(frozen=True)
class BestSingle:
    """The one ingredient with the best score on the split that decides: the baseline of soups."""

    name = "best-single"

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
        """Choose one; see `Recipe.cook`."""
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        best, _ = ranked(kitchen, self.name)[0]
        return serve(self, kitchen, kitchen.uniform([best]), selected=[best])
