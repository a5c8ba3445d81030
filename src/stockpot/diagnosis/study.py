"""Will these soup, and why (not): the call behind `stockpot diagnose`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stockpot._figures import Role as ModelKind
from stockpot._types import Progress, no_progress
from stockpot.analysis.barrier import ScoredLine, line
from stockpot.analysis.diversity import Override, override
from stockpot.analysis.landscape import Landscape, landscape
from stockpot.analysis.pairs import ALPHAS, PairStudy, sample_pairs, study_pair
from stockpot.analysis.space import WeightPoint, WeightSpace
from stockpot.diagnosis.parts import (
    CalibrationRow,
    Contribution,
    ModelRow,
    Spending,
    calibrate,
    layer_maps,
    leave_one_out,
)
from stockpot.diagnosis.plan import (
    LINE_POINTS,
    MAX_PAIRS,
    N_ORDERS,
    STEP_POINTS,
    Part,
    plan,
    share_out,
)
from stockpot.diagnosis.result import Diagnosis
from stockpot.diagnosis.verdict import conclude
from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    shift_difference,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Role
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.ensembles import mean_logits
from stockpot.recipes.greedy import Greedy, ingredients_curve
from stockpot.recipes.selection import CurvePoint

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task


def diagnose(
    ingredients: Ingredients | Iterable[Source],
    task: Task | None = None,
    *,
    base: Source | None = None,
    evaluator: Evaluator | None = None,
    budget: int | None = None,
    choose_on: str | None = None,
    on_mismatch: OnMismatch = "error",
    between: Sequence[tuple[str, str]] = (),
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = no_progress,
) -> Diagnosis:
    """Measure everything that bears on whether ingredients average well, and what is gained.

    Lines, pairs and planes are measured on the held-out split; what the soups score and how
    calibrated they are is reported on the others. Nothing is scored twice: with a journal, a killed
    call continues, and a finished one scores nothing again. The result does not depend on what the
    journal knew.

    Args:
        ingredients: `Ingredients` with a base, or what they are made of; at least two.
        task: classifiers only.
        base: what they were fine-tuned from, for ingredients that are not `Ingredients` yet.
        evaluator: scores; by default one that forgets, made from the task.
        budget: most evaluations (one set of weights on one split); None does everything, which for
            12 ingredients and one test split is about 400. What it does not suffice for is left out
            and named in `notes`.
        choose_on: the held-out split, where there are several.
        on_mismatch: see `Ingredients`.
        between: further lines, each from one model to another: paths, the base's path, `"uniform"`
            or `"greedy"`.
        hyperparameters: by path, to tell what differs between two ingredients.
        progress: called with evaluations.

    Raises:
        RecipeError: no base, fewer than two ingredients, or a budget below the least.
        EvaluationError: the task's outputs are no logits over classes.
    """
    if evaluator is None and task is not None:
        evaluator = TaskEvaluator(task)
    context = RecipeContext(
        ingredients=ingredients
        if isinstance(ingredients, Ingredients)
        else Ingredients(ingredients, base=base, on_mismatch=on_mismatch),
        evaluator=evaluator,
        choose_on=None if evaluator is None else split_to_choose_on(evaluator.task, choose_on),
        report=False,
    )
    if len(context.ingredients) < 2:
        raise RecipeError("one ingredient alone cannot be a soup; give at least two")
    scorer, split = context.scoring("diagnose")
    if not scorer.has_outputs:
        raise EvaluationError("diagnose needs outputs by example, which --eval does not give")
    # It counts evaluations, where the evaluator would count examples of each.
    quiet = scorer.with_progress(no_progress)
    space = WeightSpace(context.ingredients, quiet, split, progress=progress)
    found = _Study(context, space).run(budget, between, hyperparameters)
    return replace(found, verdict=conclude(found))


class _Study:
    """One study under way; its state is what has been found so far."""

    def __init__(self, context: RecipeContext, space: WeightSpace) -> None:
        self.context, self.space = context, space
        self.k = len(context.ingredients)
        self.seed = space.evaluator.seed
        self.notes: list[str] = []
        splits = space.evaluator.task.splits
        self.tests = [name for name, split in splits.items() if split.role is Role.TEST]
        self.shifts = [name for name, split in splits.items() if split.role is Role.SHIFT]

    def run(
        self,
        budget: int | None,
        between: Sequence[tuple[str, str]],
        hyperparameters: Mapping[str, Mapping[str, Any]] | None,
    ) -> Diagnosis:
        space, given = self.space, self.context.ingredients
        parts = plan(
            self.k,
            len(self.tests) + len(self.shifts),
            n_asked=len(between),
            has_batchnorm=space.evaluator.recalibrates(self.context.uniform([0, 1])),
        )
        shares = share_out(budget, parts)
        space.planned = sum(shares.values())
        self._note_left_out(parts, shares)
        ranking = self._rank()
        kept = self._greedy()
        uniform, greedy = space.mean("uniform", range(self.k)), space.mean("greedy", kept)
        space.measure(uniform)
        best = space.ingredient(ranking[0])
        lines = self._lines(ranking, kept, greedy, uniform, between, shares["lines"])
        pairs = self._pairs(shares["pairs"], hyperparameters)
        plane = self._landscape(ranking, greedy, uniform, shares["landscape"])
        models, found = self._reports(ranking, greedy, uniform, shares["reports"])
        contributions = self._contributions(kept, shares["leave one out"])
        growth = self._growth(shares["number of ingredients"])
        space.progress(space.planned, space.planned, "evaluations")
        return Diagnosis(
            base=space.base.path,
            ingredients=tuple(checkpoint.path for checkpoint in given),
            best=best.name,
            kept=tuple(given[i].path for i in kept),
            split=space.split,
            test=self.tests[0] if self.tests and found else space.split,
            shifts=tuple(self.shifts),
            metric=space.evaluator.metric.name,
            higher_is_better=space.evaluator.metric.higher_is_better,
            moves=space.geometry.moves(),
            layers=layer_maps(space),
            models=models,
            gains=self._gains(found, best.name),
            lines=lines,
            pairs=pairs,
            landscape=plane,
            calibration=self._calibration(found, best, greedy, uniform),
            override=self._override(found, best),
            contributions=tuple(contributions),
            growth=tuple(growth),
            spending=Spending(budget, shares, space.evaluated),
            hyperparameters=dict(hyperparameters or {}),
            notes=(*given.notes, *space.evaluator.notes, *self.notes),
        )

    def _note_left_out(self, parts: Sequence[Part], shares: Mapping[str, int]) -> None:
        missing = [part.name for part in parts if part.wish > 0 and shares[part.name] == 0]
        cut = [part.name for part in parts if 0 < shares[part.name] < part.wish]
        everything = sum(part.wish for part in parts)
        if missing:
            self.notes.append(
                f"the budget did not suffice for: {', '.join(missing)}; {everything} evaluations "
                "do everything"
            )
        if cut:
            self.notes.append(f"the budget cut short: {', '.join(cut)}")

    def _rank(self) -> list[int]:
        """Positions by held-out score, best first; the base is scored on the way."""
        self.space.measure(self.space.origin)
        measured = {i: self.space.measure(self.space.ingredient(i)) for i in range(self.k)}
        quality = self.space.evaluator.metric.quality
        # Where the scores are equal, the lower loss says more than the order of arguments.
        return sorted(measured, key=lambda i: (-quality(measured[i].score), measured[i].loss, i))

    def _greedy(self) -> list[int]:
        """Positions kept by the greedy recipe, every candidate scored in full."""
        space = self.space
        recipe = Greedy(early_rejection=False, explain=False)
        with space.counting(space.split):
            soup = recipe.cook(
                self.context.ingredients, evaluator=space.evaluator, choose_on=space.split,
                report=False,
            )  # fmt: skip
        position = {c.path: i for i, c in enumerate(self.context.ingredients)}
        kept: list[int] = []
        for step in soup.steps:
            tried = [*kept, position[step.candidate]]
            space.record(self.context.uniform(tried), space.split)
            kept = tried if step.accepted else kept
        return kept

    def _lines(
        self,
        ranking: Sequence[int],
        kept: Sequence[int],
        greedy: WeightPoint,
        uniform: WeightPoint,
        between: Sequence[tuple[str, str]],
        share: int,
    ) -> tuple[ScoredLine, ...]:
        space = self.space
        best, second = (space.ingredient(i) for i in ranking[:2])
        known = {p.name: p for p in (space.origin, greedy, uniform)}
        known |= {c.path: space.ingredient(i) for i, c in enumerate(self.context.ingredients)}
        lines = [line(space, *_ends(known, names), n_points=LINE_POINTS) for names in between]
        wanted = [
            (best, second, "runs", LINE_POINTS),
            (space.origin, best, "base", LINE_POINTS),
            (best, greedy, "soup", LINE_POINTS),
            (best, uniform, "soup", LINE_POINTS),
            (space.origin, greedy, "base", LINE_POINTS),
            (space.origin, uniform, "base", LINE_POINTS),
        ]
        path = [
            space.mean(f"greedy of {n}" if n > 1 else best.name, kept[:n])
            for n in range(1, len(kept) + 1)
        ]
        wanted += [(a, b, "greedy path", STEP_POINTS) for a, b in pairwise(path)]
        seen: set[tuple[tuple[float, ...], tuple[float, ...]]] = set()
        for a, b, kind, n_points in wanted:
            ends = (a.coefficients, b.coefficients)
            if a.coefficients == b.coefficients or (ends in seen and kind != "greedy path"):
                continue
            if n_points - 2 > share:
                break
            seen.add(ends)
            share -= n_points - 2
            lines.append(line(space, a, b, n_points=n_points, kind=kind))
        return tuple(lines)

    def _pairs(
        self, share: int, hyperparameters: Mapping[str, Mapping[str, Any]] | None
    ) -> tuple[PairStudy, ...]:
        most = min(share // len(ALPHAS), MAX_PAIRS)
        chosen = sample_pairs(self.k, most, seed=self.seed) if most > 0 else []
        if 0 < len(chosen) < self.k * (self.k - 1) // 2:
            self.notes.append(
                f"{len(chosen)} of {self.k * (self.k - 1) // 2} pairs were drawn at random"
            )
        return tuple(
            study_pair(self.space, i, j, hyperparameters=hyperparameters) for i, j in chosen
        )

    def _landscape(
        self, ranking: Sequence[int], greedy: WeightPoint, uniform: WeightPoint, share: int
    ) -> Landscape | None:
        if share == 0:
            return None
        space = self.space
        others = [("run", space.ingredient(i)) for i in ranking[2:]]
        others += [("soup", greedy), ("soup", uniform)]
        first, second = (space.ingredient(i) for i in ranking[:2])
        try:
            return landscape(space, first, second, budget=share - 1, others=others)
        except ValueError as error:
            self.notes.append(f"no landscape of {first.name} and {second.name}: {error}")
            return None

    def _reports(
        self, ranking: Sequence[int], greedy: WeightPoint, uniform: WeightPoint, share: int
    ) -> tuple[dict[str, ModelRow], dict[str, dict[str, Predictions]]]:
        """Scores on all splits of as many models as the share allows, and their predictions.

        Where it does not, models have their held-out score only.
        """
        space = self.space
        splits = [*self.tests, *self.shifts]
        middle = space.between(space.origin, space.ingredient(ranking[0]), 0.5)
        order: list[tuple[ModelKind, WeightPoint]] = [
            ("run", space.ingredient(ranking[0])), ("soup", greedy), ("soup", uniform),
            ("base", space.origin), *(("run", space.ingredient(i)) for i in ranking[1:]),
            ("", middle),
        ]  # fmt: skip
        affordable = share // len(splits) if splits else 0
        found: dict[str, dict[str, Predictions]] = {}
        models: dict[str, ModelRow] = {}
        for n, (kind, point) in enumerate(order):
            if kind == "" and n >= affordable:
                continue
            where = [space.split, *(splits if n < affordable else [])]
            found[point.name] = {split: space.predictions(point, split) for split in where}
            if kind != "":
                members = self._members(point) if kind == "soup" else ()
                scores = space.evaluator.scores_of(found[point.name], name=point.name)
                models[point.name] = ModelRow(point.name, kind, scores, members)
        everyone = [space.ingredient(i) for i in range(self.k)]
        if affordable >= self.k + 3:
            found["ensemble"] = {
                split: mean_logits(
                    space.evaluator, [space.predictions(p, split) for p in everyone], split
                )
                for split in (space.split, *splits)
            }
            scores = space.evaluator.scores_of(found["ensemble"], name="the ensemble")
            models["ensemble"] = ModelRow(
                "ensemble", "ensemble", scores, tuple(p.name for p in everyone)
            )
        if affordable == 0:
            return models, {}
        return models, {n: by for n, by in found.items() if len(by) > 1}

    def _members(self, point: WeightPoint) -> tuple[str, ...]:
        return tuple(
            checkpoint.path
            for checkpoint, c in zip(self.context.ingredients, point.coefficients, strict=True)
            if c != 0
        )

    def _gains(
        self, found: Mapping[str, Mapping[str, Predictions]], best: str
    ) -> dict[str, dict[str, Difference]]:
        """Of soups, base and ensemble over the best single ingredient, on reporting splits."""
        gains: dict[str, dict[str, Difference]] = {}
        for name in ("uniform", "greedy", self.space.base.path, "ensemble"):
            if name not in found or best not in found:
                continue
            here, there = found[name], found[best]
            by: dict[str, Difference | None] = {
                split: difference(here[split], there[split], split, against=best, seed=self.seed)
                for split in self.tests
            }
            splits = self.space.evaluator.task.splits
            by[SHIFT_AVERAGE] = shift_difference(here, there, splits, against=best, seed=self.seed)
            gains[name] = {split: gap for split, gap in by.items() if gap is not None}
        return gains

    def _calibration(
        self,
        found: Mapping[str, Mapping[str, Predictions]],
        best: WeightPoint,
        greedy: WeightPoint,
        uniform: WeightPoint,
    ) -> tuple[CalibrationRow, ...]:
        kinds = {best.name: "run", greedy.name: "soup", uniform.name: "soup"}
        kinds["ensemble"] = "ensemble"
        test = self.tests[0] if self.tests else None
        return tuple(
            calibrate(name, kind, found[name][self.space.split], found[name][test])
            for name, kind in kinds.items()
            if test is not None and name in found
        )

    def _override(
        self, found: Mapping[str, Mapping[str, Predictions]], best: WeightPoint
    ) -> Override | None:
        middle = self.space.between(self.space.origin, best, 0.5).name
        names = (self.space.base.path, best.name, middle)
        if not self.tests or any(name not in found for name in names):
            return None
        labels = [found[name][self.tests[0]].outputs.argmax(1) for name in names]
        return override(*labels)

    def _contributions(self, kept: Sequence[int], share: int) -> list[Contribution]:
        found: list[Contribution] = []
        if share >= self.k:
            found += leave_one_out(self.space, "uniform", range(self.k))
            share -= self.k
        if 1 < len(kept) < self.k and share >= len(kept):
            found += leave_one_out(self.space, "greedy", kept)
        return found

    def _growth(self, share: int) -> list[CurvePoint]:
        if self.k < 3 or share < self.k - 2:
            return []
        n_orders = min(N_ORDERS, share // (self.k - 2))
        with self.space.counting(self.space.split):
            return ingredients_curve(self.context, n_orders=n_orders, seed=self.seed)


def _ends(
    known: Mapping[str, WeightPoint], names: tuple[str, str]
) -> tuple[WeightPoint, WeightPoint]:
    missing = [name for name in names if name not in known]
    if missing:
        raise RecipeError(
            f"{' and '.join(missing)}: no such model for a line; expected the path of an "
            "ingredient as it was given, the base's, uniform or greedy"
        )
    return known[names[0]], known[names[1]]
