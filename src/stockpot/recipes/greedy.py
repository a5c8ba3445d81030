"""Greedy soups: add an ingredient when the held-out score does not fall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.analysis.explanations import Finding
from stockpot.analysis.explanations import explain as why
from stockpot.evaluate.compare import Predictions, p_value
from stockpot.evaluate.early_rejection import Accept, Race, race
from stockpot.evaluate.evaluator import Evaluator
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import Kitchen, Step, prepare
from stockpot.recipes.repeats import ingredients_curve, random_orders
from stockpot.recipes.selection import Order, in_order, ranked, single_predictions
from stockpot.recipes.selection_bias import Candidacy, candidate_optimism
from stockpot.recipes.soup import Soup, serve
from stockpot.tensors.spec import DType

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.mixing import Mixture


@dataclass(frozen=True)
class Greedy:
    """Walk through the ingredients, best first, and keep each that does not lower the score.

    With `order="score"` the soup is never worse than the best ingredient on the data that it was
    chosen on; on other data it may be.

    Attributes:
        order: `"score"` (best first), `"random"` (by `seed`) or `"given"`.
        accept: `"ge"` keeps ties (the paper's text), `"gt"` does not (its published code).
        min_gain: least improvement of the score for acceptance.
        early_rejection: stop scoring a candidate that cannot pass any more. The soup is the same.
        seed: of the random order.
        explain: where only one of several is kept, look for the reason (a few more forward passes).
        optimism: among which candidates selection optimism is measured; see `Candidacy`.
        random_orders: also cook in so many random orders, and tell mean and sd of their scores.
        curve: also score uniform soups of 1, 2, … ingredients, in so many random orders.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, Recipe 1.
    """

    order: Order = "score"
    accept: Accept = "ge"
    min_gain: float = 0.0
    early_rejection: bool = True
    seed: int = 0
    explain: bool = True
    optimism: Candidacy = "scored"
    random_orders: int = 0
    curve: int = 0

    name = "greedy"

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
        """Choose and average; see `Recipe.cook`."""
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        singles = single_predictions(kitchen, self.name)
        ranking = ranked(kitchen, self.name, singles)
        kept, tried = self._select(kitchen, singles, ranking)
        evaluator, split = kitchen.scoring(self.name)
        reasons = self._reasons(kitchen, kept, ranking)
        extra: dict[str, JSON] = {
            "reasons": [reason.to_json() for reason in reasons],
            "optimism": candidate_optimism(kitchen, self.name, tried, self.optimism),
            "singles": {kitchen.paths[i]: value for i, value in ranking},
        }
        if self.random_orders:
            orders = random_orders(kitchen, self, n_orders=self.random_orders)
            extra["random_orders"] = orders.to_json()
        if self.curve:
            points = ingredients_curve(kitchen, n_orders=self.curve, seed=self.seed)
            extra["ingredients_curve"] = [point.to_json() for point in points]
        return serve(
            self, kitchen, kitchen.uniform(kept), selected=kept, tried=tried,
            examples_plain=evaluator.n_examples(split) * (len(ranking) - 1), extra=extra,
            notes=[*duplicate_notes(kitchen), *(f"{r.text}; {r.remedy}" for r in reasons)],
        )  # fmt: skip

    def _reasons(
        self, kitchen: Kitchen, kept: list[int], ranking: list[tuple[int, float]]
    ) -> list[Finding]:
        alone = self.explain and len(kept) == 1 < len(ranking)
        if not alone:
            return []
        return why(
            kitchen.ingredients, [i for i, _ in ranking], evaluator=kitchen.evaluator,
            split=kitchen.choose_on, mix=kitchen.mixture,
        )  # fmt: skip

    def _select(
        self, kitchen: Kitchen, singles: dict[int, Predictions], ranking: list[tuple[int, float]]
    ) -> tuple[list[int], list[tuple[Step, Mixture]]]:
        evaluator, split = kitchen.scoring(self.name)
        rule = Race(self.accept, self.min_gain, self.early_rejection)
        first, *others = in_order(ranking, self.order, seed=self.seed)
        kept, current = [first], singles[first]
        value = dict(ranking)[first]
        start = Step(kitchen.paths[first], accepted=True, score=value, reason="first")
        tried = [(start, kitchen.uniform(kept))]
        for position, i in enumerate(others):
            ahead = others[position : position + evaluator.n_ahead]
            evaluator.score_ahead([kitchen.uniform([*kept, j]) for j in ahead], split)
            candidate = kitchen.uniform([*kept, i])
            verdict = race(
                evaluator, candidate, split, current=current, rule=rule,
                predicted=predicted_outputs(current, len(kept), singles[i], 1),
            )  # fmt: skip
            step = Step(
                kitchen.paths[i], verdict.accepted, verdict.value, verdict.bound,
                verdict.examples, p_value(verdict.predictions, current, seed=evaluator.seed),
            )  # fmt: skip
            tried.append((step, candidate))
            if verdict.accepted and verdict.predictions is not None:
                kept.append(i)
                current = verdict.predictions
            evaluator.progress(len(tried), len(ranking), "ingredients")
        return kept, tried


def predicted_outputs(
    current: Predictions, n_current: int, other: Predictions, sign: int
) -> npt.NDArray[np.float32]:
    """A guess of a soup's outputs from those of its parts: weighted mean of logits (n, …).

    `sign` 1 adds `other` to a soup of `n_current`; −1 takes it out.
    """
    total = n_current * current.outputs + sign * other.outputs
    guess: npt.NDArray[np.float32] = total / np.float32(max(1, n_current + sign))
    return guess


def duplicate_notes(kitchen: Kitchen) -> list[str]:
    """A sentence for every ingredient that was dropped because another holds the same weights."""
    return [
        f"{kitchen.paths[i]} holds the same weights as {kitchen.paths[j]} and was left out"
        for i, j in kitchen.duplicates().items()
    ]
