"""Learned soups: coefficients fitted on held-out data, with one model in memory.

Wortsman et al. 2022 (arXiv 2203.05482, App. I) minimise over α ∈ R^k and β ∈ R

    Σ_j ℓ( β · f(x_j; Σ_i softmax(α)_i θ_i), y_j )

on held-out data with all ingredients in memory. The same optimum is reached here while they stay
on disk; see `stockpot.mixing.blocks`. Unlike the paper, the held-out data are divided: one part
fits, and the other decides whether the fitted soup is better than the uniform and greedy soups
that were chosen on the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from stockpot._figures import Column, Row, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task_evaluator import TaskEvaluator, require_outputs
from stockpot.mixing import Mixture
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.learned.descent import Descent
from stockpot.recipes.learned.objective import FitRecord, Fitted, Part, coefficients_by_path
from stockpot.recipes.learned.optimisers import FitOptions
from stockpot.recipes.learned.search import search
from stockpot.recipes.result import Details, Names

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.evaluate.task import Task


@dataclass(frozen=True, kw_only=True)
class LearnedDetails(FitRecord, Details):
    """What was fitted, what it competed with, and on which examples.

    Attributes:
        taken: which soup is returned: `"learned"`, `"uniform"` or `"greedy"`.
        learned_coefficients: path → coefficient, or group → {path: coefficient}, of what was
            fitted.
        choices: the same of the uniform and the greedy soup.
        parts: by soup, its metric on the `fitting` and the `deciding` part.
        n_fitting: examples that fitted; None where a program scores.
        n_deciding: examples that decided; None where a program scores.
    """

    taken: str
    learned_coefficients: Mapping[str, JSON]
    choices: Mapping[str, JSON]
    parts: Mapping[str, Mapping[str, float]]
    n_fitting: int | None
    n_deciding: int | None

    def to_json(self) -> dict[str, JSON]:
        """The attributes as keys, without `n_evaluations` where there were gradients."""
        data = asdict(self)
        data["losses"] = None if self.losses is None else list(self.losses)
        if self.n_evaluations is None:
            del data["n_evaluations"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearnedDetails:
        """The details in the JSON of a soup; keys that are none of theirs are ignored."""
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        losses = known["losses"]
        return cls(**{**known, "losses": None if losses is None else tuple(losses)})

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The soups that were compared, and coefficients where groups have their own."""
        columns = [
            part for part in ("fitting", "deciding") if part in self.parts.get("learned", ())
        ]
        counts = {"fitting": self.n_fitting, "deciding": self.n_deciding}
        compared = Table(
            name="compared",
            title="Soups that were compared",
            first="soup",
            columns=tuple(
                Column(name=c if counts[c] is None else f"{c} ({counts[c]})") for c in columns
            ),
            rows=tuple(
                Row(name=name, cells=tuple(part.get(c) for c in columns), chosen=name == self.taken)
                for name, part in self.parts.items()
            ),
        )
        shares = self._shares(names)
        return (compared,) if shares is None else (shares, compared)

    def _shares(self, names: Names) -> Table | None:
        """Of each ingredient the mean over groups and the range; None where there is one vector."""
        by_path: dict[str, list[float]] = {}
        for group in self.learned_coefficients.values():
            if not isinstance(group, Mapping):
                return None
            for path, value in group.items():
                by_path.setdefault(path, []).append(float(str(value)))
        return Table(
            name="coefficients",
            title="Learned coefficients",
            explanation=f"Over {len(self.learned_coefficients)} groups.",
            first="ingredient",
            columns=tuple(Column(name=name) for name in ("mean", "least", "largest")),
            rows=tuple(
                Row(name=names.get(path, path), cells=(sum(v) / len(v), min(v), max(v)))
                for path, v in by_path.items()
            ),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Learned(FitOptions, Recipe):
    """Fit mixing coefficients, and an inverse temperature β, by gradient descent.

    The fitted soup is taken only where it is at least as good, on data that had no part in the
    fitting, as the uniform and the greedy soup; otherwise the better of those is returned, and
    `notes` says so. β is fitted along and recorded, and is not part of the weights.

    Where a program scores (`CommandEvaluator`) there are no gradients: CMA-ES searches for the
    coefficients within `budget` evaluations. Without a program of its own that decides, the
    fitted soup is compared on the data that fitted it, and `notes` says that this favours it.

    Which coefficients there are and how they are fitted are the options of `FitOptions`.

    Attributes:
        deciding: share of the held-out split that decides.
        decide_on: another held-out split that decides, in place of a share; all of the split that
            chooses then fits.
        starts: where to begin; each is run and the lowest loss on the fitting part is kept.
    """

    name = "learned"
    title = "Learned soup"
    command = "learned"
    summary = "Learned soup: fit the mixing coefficients on held-out data."
    about = (
        "One part of the held-out split fits, a fifth of it by saying when to stop; the other had "
        "no part in that and decides whether the result is better than the uniform and the greedy "
        "soup, and the best of the three is written. Ingredients stay "
        "on disk: memory is that of the model and its gradient. A killed command continues where "
        "it was.\n\n"
        "With --eval there are no gradients: CMA-ES searches for coefficients within --budget runs "
        "of the program, beside those that the greedy soup takes (two for each ingredient). Give a "
        "second program with other data to decide."
    )
    examples = (
        "stockpot learned runs/ --task handwriting -o soup.safetensors",
        "stockpot learned runs/ --task my_task.py:task -o soup.safetensors --by layer "
        "--max-memory 8GB",
        'stockpot learned runs/ --eval "score {checkpoint} fit.csv" -o soup.safetensors \\\n'
        '    --eval-deciding "score {checkpoint} decide.csv"',
    )
    details_type = LearnedDetails
    simplicity = 5

    deciding: float = option(0.5, help="Share of the held-out data that decides.")
    decide_on: str | None = option(
        None, metavar="SPLIT", help="Held-out split that decides instead."
    )
    starts: tuple[Literal["uniform", "greedy"], ...] = ("uniform", "greedy")

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = self.problems()
        if not 0 < self.deciding < 1:
            problems.append(f"deciding is {self.deciding}, expected a share between 0 and 1")
        if len(self.starts) == 0 or not set(self.starts) <= {"uniform", "greedy"}:
            problems.append(f"starts are {self.starts}, expected uniform, greedy, or both")
        if problems:
            raise RecipeError("; ".join(problems))

    def selection_split(self, task: Task, choose_on: str | None) -> str | None:
        """The split that fits, beside the one that decides where `decide_on` names it."""
        return split_to_choose_on(task, choose_on, besides=self.decide_on)

    def solve(self, context: RecipeContext) -> Solution:
        """Fit the coefficients. An interrupted run continues when run again.

        Raises:
            RecipeError: no task, fewer than two ingredients, or too little `max_memory` or budget.
        """
        scoring, split = context.choosing(self.name)
        if len(context.ingredients) < 2:
            raise RecipeError("one ingredient has nothing to be mixed with; give at least two")
        fitting, deciding = self._parts(scoring, split)
        others = {
            "uniform": context.uniform(range(len(context.ingredients))),
            "greedy": _greedy_on(context, scoring, fitting),
        }
        starts: dict[str, Mixture] = {name: others[name] for name in self.starts}
        if isinstance(scoring, TaskEvaluator) and deciding is not None:
            fit, stop = _with_stopping(fitting, self.stopping, seed=self.seed)
            descent = Descent.begin(self, context, scoring, fit, stop)
            fitted = descent.best(starts)
            del descent  # a model's worth of memory
        else:
            fitted = search(self, context, scoring, fitting, starts)
        candidates = {**others, "learned": fitted.mixture}
        parts = {
            name: _part_scores(scoring, mixture, fitting, deciding)
            for name, mixture in candidates.items()
        }
        return self._solution(context, fitted, candidates, parts, fitting, deciding)

    def _parts(self, evaluator: Evaluator, split: str) -> tuple[Part, Part | None]:
        """What fits and what decides; a program's examples cannot be divided from outside."""
        whole = Part(split, range(evaluator.n_examples(split)))
        if self.decide_on is not None:
            return whole, Part(self.decide_on, range(evaluator.n_examples(self.decide_on)))
        if not evaluator.has_outputs:
            return whole, None
        fitting, deciding = divide(len(whole.indices), self.deciding, seed=self.seed)
        return Part(split, fitting), Part(split, deciding)

    def _solution(
        self,
        context: RecipeContext,
        fitted: Fitted,
        candidates: Mapping[str, Mixture],
        parts: Mapping[str, Mapping[str, float]],
        fitting: Part,
        deciding: Part | None,
    ) -> Solution:
        scoring, _ = context.scoring(self.name)
        decider = "fitting" if deciding is None else "deciding"
        best = {name: part[decider] for name, part in parts.items()}
        part = fitting if deciding is None else deciding
        taken = _decide(
            {name: _standing(scoring, candidates[name], part, best[name]) for name in best}
        )
        mixture, notes = candidates[taken], [*fitted.notes]
        if taken != "learned":
            notes.append(
                f"the learned soup scores {best['learned']:.4f} on the {decider} part and the "
                f"{taken} soup {best[taken]:.4f}: the {taken} soup is taken"
            )
        if deciding is None:
            notes.append(
                "the learned soup was compared on the data that fitted it, which favours it; give "
                "a program with other data to decide (--eval-deciding CMD)"
            )
        named: dict[str, JSON] = {
            name: coefficients_by_path(found) for name, found in candidates.items()
        }
        counts = [
            len(p.indices) if p is not None and scoring.has_outputs else None
            for p in (fitting, deciding)
        ]
        learned = coefficients_by_path(candidates["learned"])
        del named["learned"]
        details = LearnedDetails(
            **vars(fitted.record),
            taken=taken,
            learned_coefficients=learned,
            choices=named,
            parts=parts,
            n_fitting=counts[0],
            n_deciding=counts[1],
        )
        return Solution(
            mixture=mixture,
            selected=[context.paths[i] for i in _members(mixture)],
            details=details,
            notes=notes,
            coefficients=coefficients_by_path(mixture),
        )


def divide(n: int, share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Positions that fit and positions that decide, both sorted; a seeded division.

    Raises:
        RecipeError: one of the two would be empty.
    """
    n_deciding = round(n * share)
    if not 0 < n_deciding < n:
        raise RecipeError(
            f"{n} held-out examples cannot be divided into a fitting and a deciding part "
            f"({share:g} of them)"
        )
    order = np.random.default_rng(seed).permutation(n)
    return sorted(order[n_deciding:].tolist()), sorted(order[:n_deciding].tolist())


def _with_stopping(fitting: Part, share: float, *, seed: int) -> tuple[Part, Part]:
    """What of the fitting part is fitted, and what says when to stop.

    The same examples are both where the share holds none.
    """
    n = len(fitting.indices)
    n_stopping = min(round(n * share), n - 1)
    if n_stopping < 1:
        return fitting, fitting
    order = np.random.default_rng([seed, 1]).permutation(n).tolist()
    stop, fit = (
        [fitting.indices[i] for i in sorted(part)]
        for part in (order[:n_stopping], order[n_stopping:])
    )
    return Part(fitting.split, fit), Part(fitting.split, stop)


def _greedy_on(context: RecipeContext, evaluator: Evaluator, part: Part) -> Mixture:
    """The greedy soup, chosen on the fitting part."""
    scoring = evaluator
    if len(part.indices) < evaluator.n_examples(part.split):
        scoring = require_outputs(evaluator, "a part of a split").on_part(part.split, part.indices)
    soup = Greedy(explain=False).cook(
        context.ingredients, evaluator=scoring, choose_on=part.split, dtype=context.dtype,
        report=False,
    )  # fmt: skip
    # By place and not by path, which models in memory have in common.
    return context.mixture(soup.mixture.coefficients.vectors[""])


def _part_scores(
    evaluator: Evaluator, mixture: Mixture, fitting: Part, deciding: Part | None
) -> dict[str, float]:
    """The metric of `mixture` on the parts."""
    parts = {"fitting": fitting} | ({} if deciding is None else {"deciding": deciding})
    return {name: _part_score(evaluator, mixture, part) for name, part in parts.items()}


def _part_score(evaluator: Evaluator, mixture: Mixture, part: Part) -> float:
    """The metric over the examples of a part, from the predictions for its whole split."""
    if len(part.indices) == evaluator.n_examples(part.split):
        return evaluator.score(mixture, part.split).value
    found = evaluator.predictions(mixture, part.split)
    return found.value(evaluator.metric, np.asarray(part.indices))


def _standing(
    evaluator: Evaluator, mixture: Mixture, part: Part, score: float
) -> tuple[float, ...]:
    """What candidates are compared by: the quality by the metric, and by those that break ties."""
    first = evaluator.metric.quality(score)
    if not evaluator.then:
        return (first,)
    found, index = evaluator.predictions(mixture, part.split), np.asarray(part.indices)
    return first, *(metric.quality(found.value(metric, index)) for metric in evaluator.then)


def _decide(standings: Mapping[str, tuple[float, ...]]) -> str:
    """`learned` unless another is better; among those, ties go to the simpler."""
    top = max(standings.values())
    return next(name for name in ("learned", "uniform", "greedy") if standings[name] == top)


def _members(mixture: Mixture) -> list[int]:
    vectors = mixture.coefficients.vectors.values()
    return [i for i in range(len(mixture.ingredients)) if any(v[i] != 0 for v in vectors)]
