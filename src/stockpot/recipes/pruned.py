"""Pruned soups: start from all ingredients, take out those that the score does not miss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stockpot.errors import RecipeError
from stockpot.evaluate.compare import Predictions, p_value
from stockpot.evaluate.early_rejection import Accept, Race, race
from stockpot.evaluate.evaluator import Evaluator
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import Kitchen, Step, prepare
from stockpot.recipes.greedy import duplicate_notes, predicted_outputs
from stockpot.recipes.selection import ranked, single_predictions
from stockpot.recipes.selection_bias import Candidacy, candidate_optimism
from stockpot.recipes.soup import Soup, serve
from stockpot.tensors.spec import DType

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.mixing import Mixture


@dataclass(frozen=True)
class Pruned:
    """Start from the uniform soup; walk from the worst to the second-best ingredient; take each
    out whose absence does not lower the score; repeat while that changes something.

    A `Step` is `accepted` when its candidate was taken out. BatchNorm statistics belong to each
    soup that is tried, not to the last model loaded.

    Attributes:
        accept: `"ge"` also takes out what makes no difference, `"gt"` only what harms.
        min_gain: least improvement of the score for taking one out.
        n_passes: at most so many walks.
        early_rejection: stop scoring a candidate that cannot pass any more. The soup is the same.
        optimism: among which candidates selection optimism is measured; see `Candidacy`.

    Reference: Dansereau et al. 2023, arXiv 2301.10092.
    """

    accept: Accept = "ge"
    min_gain: float = 0.0
    n_passes: int = 3
    early_rejection: bool = True
    optimism: Candidacy = "scored"

    name = "pruned"

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
        if self.n_passes < 1:
            raise RecipeError(f"n_passes is {self.n_passes}, expected at least 1")
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        scorer, split = kitchen.scoring(self.name)
        singles = single_predictions(kitchen, self.name)
        ranking = ranked(kitchen, self.name, singles)
        best_first = [i for i, _ in ranking]
        kept, tried = self._select(kitchen, singles, best_first)
        n, everyone = scorer.n_examples(split), kitchen.uniform(best_first)
        value = scorer.score(everyone, split).value
        start = Step("all", accepted=False, score=value, examples=n)
        return serve(
            self, kitchen, kitchen.uniform(kept), selected=[i for i in best_first if i in kept],
            tried=tried, start=(start, everyone), examples_plain=n * (1 + len(tried)),
            extra={
                "optimism": candidate_optimism(
                    kitchen, self.name, [(start, everyone), *tried], self.optimism
                ),
                "singles": {kitchen.paths[i]: value for i, value in ranking},
            },
            notes=duplicate_notes(kitchen),
        )  # fmt: skip

    def _select(
        self, kitchen: Kitchen, singles: dict[int, Predictions], best_first: list[int]
    ) -> tuple[list[int], list[tuple[Step, Mixture]]]:
        evaluator, split = kitchen.scoring(self.name)
        rule = Race(self.accept, self.min_gain, self.early_rejection)
        kept = list(best_first)
        tried: list[tuple[Step, Mixture]] = []
        current = evaluator.predictions(kitchen.uniform(kept), split)
        for _ in range(self.n_passes):
            before = len(kept)
            waiting = [i for i in reversed(best_first[1:]) if i in kept]
            for position, i in enumerate(waiting):
                if len(kept) == 1:
                    break
                ahead = waiting[position : position + evaluator.n_ahead]
                without = {j: kitchen.uniform(m for m in kept if m != j) for j in (*ahead, i)}
                evaluator.score_ahead([without[j] for j in ahead], split)
                verdict = race(
                    evaluator, without[i], split, current=current, rule=rule,
                    predicted=predicted_outputs(current, len(kept), singles[i], -1),
                )  # fmt: skip
                p = p_value(verdict.predictions, current, seed=evaluator.seed)
                step = Step(
                    kitchen.paths[i], verdict.accepted, verdict.value, verdict.bound,
                    verdict.examples, p, "taken out" if verdict.accepted else "",
                )  # fmt: skip
                tried.append((step, without[i]))
                if verdict.accepted and verdict.predictions is not None:
                    kept.remove(i)
                    current = verdict.predictions
                evaluator.progress(len(tried), None, "ingredients")
            if len(kept) == before:
                break
        return kept, tried
