"""Greedy soups: add an ingredient when the held-out score does not fall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.checkpoint.ingredients import Ingredients, OnMismatch, Source
from stockpot.checkpoint.spec import DType
from stockpot.evaluation.racing import Accept, Race, race
from stockpot.evaluation.scoring import Evaluator, Predictions
from stockpot.recipes.base import Kitchen, Step, prepare
from stockpot.recipes.candidates import Candidates
from stockpot.recipes.explain import explain as why
from stockpot.recipes.selection import Order, in_order, p_value, ranked, single_predictions
from stockpot.recipes.soup import Soup, serve

if TYPE_CHECKING:
    from stockpot.models.task import Task

__all__ = ["Greedy", "duplicate_notes", "predicted_outputs"]


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

    Reference: Wortsman et al. 2022, arXiv 2203.05482, Recipe 1.
    """

    order: Order = "score"
    accept: Accept = "ge"
    min_gain: float = 0.0
    early_rejection: bool = True
    seed: int = 0
    explain: bool = True

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
        kept, steps = self._select(kitchen, singles, ranking)
        _, split = kitchen.scoring(self.name)
        n = kitchen.scoring(self.name)[0].n_examples(split)
        alone = self.explain and len(kept) == 1 < len(ranking)
        reasons = why(kitchen, [i for i, _ in ranking]) if alone else []
        return serve(
            self, kitchen, kitchen.uniform(kept), selected=kept, steps=steps,
            examples_plain=n * (len(ranking) - 1),
            extra={"reasons": [reason.to_json() for reason in reasons]},
            notes=[*duplicate_notes(kitchen), *(f"{r.text}; {r.remedy}" for r in reasons)],
        )  # fmt: skip

    def _select(
        self, kitchen: Kitchen, singles: dict[int, Predictions], ranking: list[tuple[int, float]]
    ) -> tuple[list[int], list[Step]]:
        evaluator, split = kitchen.scoring(self.name)
        rule = Race(self.accept, self.min_gain, self.early_rejection)
        first, *others = in_order(ranking, self.order, seed=self.seed)
        kept, current = [first], singles[first]
        value = dict(ranking)[first]
        steps = [Step(kitchen.paths[first], accepted=True, score=value, reason="first")]
        candidates = Candidates(kitchen, kept)
        for i in others:
            verdict = race(
                evaluator, candidates.with_(i), split, current=current, rule=rule,
                predicted=predicted_outputs(current, len(kept), singles[i], 1),
            )  # fmt: skip
            steps.append(
                Step(
                    kitchen.paths[i],
                    verdict.accepted,
                    verdict.value,
                    verdict.bound,
                    verdict.examples,
                    p_value(verdict.predictions, current, evaluator),
                )
            )
            if verdict.accepted and verdict.predictions is not None:
                kept.append(i)
                candidates.add(i)
                current = verdict.predictions
            evaluator.progress(len(steps), len(ranking), "ingredients")
        return kept, steps


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
