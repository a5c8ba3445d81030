"""Greedy soups add an ingredient when the held-out score does not fall; pruned ones take out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from stockpot._options import option
from stockpot.analysis.explanations import Finding, explain
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import Predictions, p_value
from stockpot.evaluate.early_rejection import Accept, AcceptanceRule, decide
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.stats import Optimism, selection_optimism
from stockpot.mixing import Mixture
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.result import Step
from stockpot.recipes.selection import CurvePoint, GreedyDetails, RandomOrders, SelectionDetails
from stockpot.recipes.soup import Soup

Order = Literal["score", "random", "given"]

Candidacy = Literal["scored", "full"]
"""Which candidates count: those that were scored on every example, or all, scored for it."""

_OPTIMISM_HELP = (
    "Measure it among the candidates that were scored on all examples, or score the rest for it "
    "too."
)
_EARLY_HELP = "Stop scoring candidates that have lost; the soup is the same."


@final
@dataclass(frozen=True, kw_only=True)
class Greedy(Recipe):
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
        random_orders: also cook in so many random orders: mean and sd of their scores.
        curve: also score uniform soups of 1, 2, … ingredients, in so many random orders.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, Recipe 1.
    """

    name = "greedy"
    title = "Greedy soup"
    command = "greedy"
    summary = "Greedy soup: add what does not lower the held-out score."
    about = (
        "Tries the checkpoints one after the other, best first. Chooses on the task's held-out "
        "split and reports on the others. Everything scored is kept in a journal, so a killed "
        "command continues where it was."
    )
    examples = (
        "stockpot greedy runs/ --task handwriting -o soup.safetensors",
        "stockpot greedy a.pt b.pt c.pt --task my_task.py:task -o soup.pt --accept gt",
        'stockpot greedy runs/ --eval "python score.py {checkpoint}" -o soup.safetensors',
        "stockpot greedy runs/ --task my_task.py:task -o soup.pt --random-orders 3 --curve 3",
    )
    details_type = GreedyDetails
    simplicity = 3

    order: Order = option("score", help="In which to try them.")
    accept: Accept = option("ge", help="Keep ties (ge) or not (gt).")
    min_gain: float = option(0.0, help="Least gain in score to keep a candidate.")
    early_rejection: bool = option(True, help=_EARLY_HELP)
    seed: int = option(0, help="Of orders and of bootstrap intervals.")
    explain: bool = True
    optimism: Candidacy = option("scored", flags=("--selection-optimism",), help=_OPTIMISM_HELP)
    random_orders: int = option(
        0, metavar="N", minimum=0, help="Also try N random orders: mean and sd."
    )
    curve: int = option(
        0,
        metavar="N",
        minimum=0,
        help="Also score means of 1, 2, … checkpoints, in N random orders.",
    )

    def solve(self, context: RecipeContext) -> Solution:
        """Choose and average."""
        evaluator, split = context.choosing(self.name)
        singles = context.singles(self.name)
        ranking = context.ranking(self.name, singles)
        kept, tried = self._select(context, singles, ranking)
        reasons = self._reasons(context, kept, ranking)
        orders = self.random_orders
        return Solution(
            mixture=context.uniform(kept),
            selected=[context.paths[i] for i in kept],
            steps=[step for step, _ in tried],
            details=GreedyDetails(
                optimism=candidate_optimism(context, self.name, tried, self.optimism),
                singles={context.paths[i]: value for i, value in ranking},
                reasons=tuple(reasons),
                random_orders=random_orders(context, self, n_orders=orders) if orders else None,
                ingredients_curve=tuple(
                    ingredients_curve(context, n_orders=self.curve, seed=self.seed)
                    if self.curve
                    else ()
                ),
            ),
            notes=[*context.duplicate_notes(), *(f"{r.text}; {r.remedy}" for r in reasons)],
            examples=sum(step.examples for step, _ in tried),
            examples_plain=evaluator.n_examples(split) * (len(ranking) - 1),
            examples_calibration=context.calibration_examples(tried),
        )

    def _reasons(
        self, context: RecipeContext, kept: list[int], ranking: list[tuple[int, float]]
    ) -> list[Finding]:
        if not self.explain or len(kept) > 1 or len(ranking) == 1:
            return []
        return explain(
            context.ingredients,
            [i for i, _ in ranking],
            evaluator=context.evaluator,
            split=context.choose_on,
            mix=context.mixture,
        )

    def _select(
        self,
        context: RecipeContext,
        singles: Mapping[int, Predictions],
        ranking: list[tuple[int, float]],
    ) -> tuple[list[int], list[tuple[Step, Mixture]]]:
        evaluator, split = context.choosing(self.name)
        rule = AcceptanceRule(self.accept, self.min_gain, self.early_rejection)
        first, *others = in_order(ranking, self.order, seed=self.seed)
        kept, current = [first], singles[first]
        value = dict(ranking)[first]
        start = Step(context.paths[first], accepted=True, score=value, reason="first")
        tried = [(start, context.uniform(kept))]
        for position, i in enumerate(others):
            ahead = others[position : position + evaluator.n_ahead]
            evaluator.score_ahead([context.uniform([*kept, j]) for j in ahead], split)
            candidate = context.uniform([*kept, i])
            verdict = decide(
                evaluator,
                candidate,
                split,
                current=current,
                rule=rule,
                predicted=predicted_outputs(current, len(kept), singles[i], 1),
            )
            step = Step(
                context.paths[i],
                verdict.accepted,
                verdict.value,
                verdict.bound,
                verdict.examples,
                p_value(verdict.predictions, current, seed=evaluator.seed),
            )
            tried.append((step, candidate))
            if verdict.accepted and verdict.predictions is not None:
                kept.append(i)
                current = verdict.predictions
            evaluator.progress(len(tried), len(ranking), "ingredients")
        return kept, tried


@final
@dataclass(frozen=True, kw_only=True)
class Pruned(Recipe):
    """Start from the uniform soup; walk from the worst to the second-best ingredient; take each
    out whose absence does not lower the score; repeat while that changes something.

    A `Step` is `accepted` when its candidate was taken out. BatchNorm statistics belong to each
    soup that is tried, not to the last model loaded. This has nothing to do with sparse weights.

    Attributes:
        accept: `"ge"` also takes out what makes no difference, `"gt"` only what harms.
        min_gain: least improvement of the score for taking one out.
        n_passes: at most so many walks.
        early_rejection: stop scoring a candidate that cannot pass any more. The soup is the same.
        optimism: among which candidates selection optimism is measured; see `Candidacy`.

    Reference: Dansereau et al. 2023, arXiv 2301.10092.
    """

    name = "pruned"
    title = "Pruned soup"
    command = "pruned"
    summary = "Pruned soup: take out what the held-out score does not miss."
    about = (
        "Starts from all and walks from the worst to the second best, until nothing changes. A "
        'step is "accepted" when its candidate was taken out.'
    )
    examples = ("stockpot pruned runs/ --task handwriting -o soup.safetensors",)
    details_type = SelectionDetails
    simplicity = 4

    accept: Accept = option("ge", help="Take out what makes no difference (ge), or not (gt).")
    min_gain: float = option(0.0, help="Least gain in score to take one out.")
    n_passes: int = option(3, flags=("--passes",), minimum=1, help="Walks through all, at most.")
    early_rejection: bool = option(True, help=_EARLY_HELP)
    optimism: Candidacy = option("scored", flags=("--selection-optimism",), help=_OPTIMISM_HELP)

    def solve(self, context: RecipeContext) -> Solution:
        """Choose and average."""
        evaluator, split = context.choosing(self.name)
        singles = context.singles(self.name)
        ranking = context.ranking(self.name, singles)
        best_first = [i for i, _ in ranking]
        kept, tried = self._select(context, singles, best_first)
        n, everyone = evaluator.n_examples(split), context.uniform(best_first)
        value = evaluator.score(everyone, split).value
        scored = [(Step("all", accepted=False, score=value, examples=n), everyone), *tried]
        return Solution(
            mixture=context.uniform(kept),
            selected=[context.paths[i] for i in best_first if i in kept],
            steps=[step for step, _ in tried],
            details=SelectionDetails(
                optimism=candidate_optimism(context, self.name, scored, self.optimism),
                singles={context.paths[i]: value for i, value in ranking},
            ),
            notes=context.duplicate_notes(),
            examples=sum(step.examples for step, _ in scored),
            examples_plain=n * (1 + len(tried)),
            examples_calibration=context.calibration_examples(scored),
        )

    def _select(
        self, context: RecipeContext, singles: Mapping[int, Predictions], best_first: list[int]
    ) -> tuple[list[int], list[tuple[Step, Mixture]]]:
        evaluator, split = context.choosing(self.name)
        rule = AcceptanceRule(self.accept, self.min_gain, self.early_rejection)
        kept = list(best_first)
        tried: list[tuple[Step, Mixture]] = []
        current = evaluator.predictions(context.uniform(kept), split)

        def without(i: int) -> Mixture:
            return context.uniform(j for j in kept if j != i)

        for _ in range(self.n_passes):
            before = len(kept)
            waiting = [i for i in reversed(best_first[1:]) if i in kept]
            for position, i in enumerate(waiting):
                if len(kept) == 1:
                    break
                ahead = waiting[position : position + evaluator.n_ahead]
                evaluator.score_ahead([without(j) for j in ahead], split)
                candidate = without(i)
                verdict = decide(
                    evaluator,
                    candidate,
                    split,
                    current=current,
                    rule=rule,
                    predicted=predicted_outputs(current, len(kept), singles[i], -1),
                )
                step = Step(
                    context.paths[i],
                    verdict.accepted,
                    verdict.value,
                    verdict.bound,
                    verdict.examples,
                    p_value(verdict.predictions, current, seed=evaluator.seed),
                    "taken out" if verdict.accepted else "",
                )
                tried.append((step, candidate))
                if verdict.accepted and verdict.predictions is not None:
                    kept.remove(i)
                    current = verdict.predictions
                evaluator.progress(len(tried), None, "ingredients")
            if len(kept) == before:
                break
        return kept, tried


def tried_in_full(context: RecipeContext, soup: Soup) -> list[Mixture]:
    """The soups that a greedy or pruned search scored on all examples, from its steps."""
    position = {path: i for i, path in enumerate(context.paths)}
    prunes = soup.recipe == Pruned.name
    kept = [i for i in range(len(position)) if i not in context.duplicates()] if prunes else []
    found = [context.uniform(kept)] if prunes else []
    for step in soup.steps:
        i = position[step.candidate]
        candidate = [j for j in kept if j != i] if prunes else [*kept, i]
        if step.score is not None:
            found.append(context.uniform(candidate))
        kept = candidate if step.accepted else kept
    return found


def in_order(ranking: list[tuple[int, float]], order: Order, *, seed: int) -> list[int]:
    """The positions of `ranking` in the order in which they are tried.

    >>> in_order([(2, 0.9), (0, 0.8), (1, 0.7)], "given", seed=0)
    [0, 1, 2]
    """
    positions = [i for i, _ in ranking]
    if order == "score":
        return positions
    if order == "given":
        return sorted(positions)
    if order == "random":
        shuffled: list[int] = np.random.default_rng(seed).permutation(sorted(positions)).tolist()
        return shuffled
    raise RecipeError(f"order is {order!r}, expected score, random or given")


def predicted_outputs(
    current: Predictions, n_current: int, other: Predictions, sign: int
) -> npt.NDArray[np.float32]:
    """A guess of a soup's outputs from those of its parts: weighted mean of logits (n, …).

    `sign` 1 adds `other` to a soup of `n_current`; −1 takes it out.
    """
    # A guess of outputs that overflow may do so, too.
    with np.errstate(over="ignore", invalid="ignore"):
        total = n_current * current.outputs + sign * other.outputs
        guess: npt.NDArray[np.float32] = total / np.float32(max(1, n_current + sign))
    return guess


def candidate_optimism(
    context: RecipeContext,
    purpose: str,
    tried: Iterable[tuple[Step, Mixture]],
    candidacy: Candidacy,
) -> Optimism | None:
    """Optimism of choosing among the single ingredients and the soups of `tried`.

    A soup that was rejected early has not been scored on all examples. It is left out, which makes
    the choice look easier than it was, unless `candidacy` is `"full"`, at the cost of scoring it.
    """
    evaluator, split = context.choosing(purpose)
    if evaluator.metric.per_example is None:
        return None
    found = list(context.singles(purpose).values())
    found += [
        evaluator.predictions(mixture, split)
        for step, mixture in tried
        if candidacy == "full" or step.score is not None
    ]
    return optimism_among(evaluator, found)


def optimism_among(evaluator: Evaluator, candidates: Iterable[Predictions]) -> Optimism | None:
    """Optimism of choosing the best of these; None where the metric is no mean."""
    scores = [found.per_example for found in candidates]
    rows = [values for values in scores if values is not None]
    if len(rows) < len(scores) or len(rows[0]) < 2:
        return None
    return selection_optimism(
        rows, higher_is_better=evaluator.metric.higher_is_better, seed=evaluator.seed
    )


def random_orders(context: RecipeContext, recipe: Greedy, *, n_orders: int = 3) -> RandomOrders:
    """Greedy soups that try the ingredients in `n_orders` random orders, seeds 0, 1, ….

    The paper uses three. Against the best-first order it shows what the ranking gains.

    Raises:
        RecipeError: fewer than two orders, which have no spread.
    """
    if n_orders < 2:
        raise RecipeError(f"{n_orders} orders have no spread; expected at least 2")
    plain = replace(recipe, order="random", explain=False, random_orders=0, curve=0)
    soups = [replace(plain, seed=seed).cook_within(context) for seed in range(n_orders)]
    mean, sd = _spread([_values(soup) for soup in soups])
    return RandomOrders(
        orders=n_orders,
        mean=mean,
        sd={split: value for split, value in sd.items() if value is not None},
        selected=tuple(soup.selected for soup in soups),
    )


def ingredients_curve(
    context: RecipeContext,
    *,
    n_orders: int = 3,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> list[CurvePoint]:
    """Scores of uniform soups against the number of ingredients.

    In each of `n_orders` random orders the first m ingredients are averaged, for every m (or those
    of `sizes`).

    Raises:
        RecipeError: no orders, or sizes out of range.
    """
    k = len(context.ingredients)
    wanted = list(range(1, k + 1)) if sizes is None else list(sizes)
    if n_orders < 1 or any(not 1 <= m <= k for m in wanted):
        raise RecipeError(f"{n_orders} orders of {wanted} ingredients; there are {k}")
    rng = np.random.default_rng(seed)
    orders: list[list[int]] = [rng.permutation(k).tolist() for _ in range(n_orders)]
    points = []
    for m in wanted:
        chosen = {tuple(sorted(order[:m])) for order in orders}
        scores = [
            {s: v.value for s, v in context.scores(context.uniform(part)).items() if v is not None}
            for part in sorted(chosen)
        ]
        mean, sd = _spread(scores)
        points.append(CurvePoint(m, mean, sd))
    return points


def _values(soup: Soup) -> dict[str, float]:
    return {split: score.value for split, score in soup.scores.items() if score is not None}


def _spread(
    rows: Sequence[Mapping[str, float]],
) -> tuple[dict[str, float], dict[str, float | None]]:
    mean, sd = dict[str, float](), dict[str, float | None]()
    for split in rows[0]:
        values = np.array([row[split] for row in rows])
        mean[split] = float(values.mean())
        sd[split] = float(values.std(ddof=1)) if len(values) > 1 else None
    return mean, sd
