"""Will these soup, and why (not): the call behind `stockpot diagnose`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from stockpot._types import Progress, no_progress
from stockpot.analysis.barrier import Line, line
from stockpot.analysis.diversity import Override
from stockpot.analysis.geometry import angle
from stockpot.analysis.landscape import Landscape, landscape
from stockpot.analysis.pairs import ALPHAS, PairStudy, sample_pairs, study_pair
from stockpot.analysis.space import Place, Space
from stockpot.diagnosis.budget import Part, share_out
from stockpot.diagnosis.reporting import (
    CalibrationRow,
    Contribution,
    calibrate,
    ensemble_predictions,
    leave_one_out,
    overrides,
    reporting_splits,
)
from stockpot.diagnosis.result import Diagnosis, LayerMap, ModelRow, Spending, layer_maps
from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    shift_difference,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.io.paths import natural_key
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import Kitchen, prepare
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.repeats import CurvePoint, ingredients_curve

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task


MAX_PAIRS = 66
"""Pairs that are scored at most, a random sample of more; 66 are all pairs of twelve."""

_LINE, _STEP_OF_GREEDY = 11, 5  # points
_SPOTS, _ORDERS = 81, 3


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
    """Measure everything that says whether ingredients average well, and what is gained.

    Lines, pairs and planes are measured on the held-out split; what the soups score and how
    calibrated they are is reported on the others. Nothing is scored twice: with a journal, a killed
    call continues, and a finished one is only told again. The result does not depend on what the
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
    kitchen = prepare(
        ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
        on_mismatch=on_mismatch, report=False,
    )  # fmt: skip
    if len(kitchen.ingredients) < 2:
        raise RecipeError("one ingredient alone cannot be a soup; give at least two")
    scorer, split = kitchen.scoring("diagnose")
    if not scorer.has_outputs:
        raise EvaluationError("diagnose needs outputs by example, which --eval does not give")
    told, scorer.progress = scorer.progress, no_progress
    try:
        study = _Study(kitchen, Space(kitchen.ingredients, scorer, split, progress=progress))
        return study.run(budget, between, hyperparameters)
    finally:
        scorer.progress = told


def plan(k: int, n_reporting: int, *, n_asked: int = 0, has_batchnorm: bool = False) -> list[Part]:
    """The parts of a study of `k` ingredients on a task with `n_reporting` other splits.

    Each is what it takes at most: points that two parts share are scored once.
    """
    pairs = min(k * (k - 1) // 2, MAX_PAIRS)
    interior = _LINE - 2
    of_greedy = (_STEP_OF_GREEDY - 2) * (k - 1)
    lines = 6 * interior + of_greedy
    return [
        Part("base and ingredients", k + 1, k + 1, needed=True),
        # Scored once more with averaged statistics, to say what recalibration does.
        Part("soups", k + has_batchnorm, k + has_batchnorm, needed=True),
        Part("lines asked for", n_asked * interior, n_asked * interior, needed=n_asked > 0),
        Part("lines", interior, lines),
        Part("pairs", len(ALPHAS) * min(pairs, 6), len(ALPHAS) * pairs),
        Part("landscape", 17, _SPOTS + 1),
        Part("reports", 4 * n_reporting, (k + 4) * n_reporting),
        Part("leave one out", k, 2 * k),
        Part("number of ingredients", max(0, k - 2), _ORDERS * max(0, k - 2)),
    ]


class _Study:
    """One study under way; its state is what has been found so far."""

    def __init__(self, kitchen: Kitchen, space: Space) -> None:
        self.kitchen, self.space = kitchen, space
        self.k = len(kitchen.ingredients)
        self.seed = space.evaluator.seed
        self.notes: list[str] = []
        self.tests, self.shifts = reporting_splits(space)

    def run(
        self,
        budget: int | None,
        between: Sequence[tuple[str, str]],
        hyperparameters: Mapping[str, Mapping[str, Any]] | None,
    ) -> Diagnosis:
        space, given = self.space, self.kitchen.ingredients
        parts = plan(
            self.k,
            len(self.tests) + len(self.shifts),
            n_asked=len(between),
            has_batchnorm=space.evaluator.recalibrates(self.kitchen.uniform([0, 1])),
        )
        shares = share_out(budget, parts)
        space.planned = sum(shares.values())
        self._note_left_out(parts, shares)
        ranking = self._rank()
        kept = self._greedy()
        uniform, greedy = space.mean("uniform", range(self.k)), space.mean("greedy", kept)
        space.read(uniform)
        best = space.ingredient(ranking[0])
        lines = self._lines(ranking, kept, greedy, uniform, between, shares["lines"])
        pairs = self._pairs(shares["pairs"], hyperparameters)
        plane = self._landscape(ranking, greedy, uniform, shares["landscape"])
        models, found = self._reports(ranking, greedy, uniform, shares["reports"])
        worth = self._worth(kept, shares["leave one out"])
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
            layers=_layers(space),
            models=models,
            gains=self._gains(found, best.name),
            lines=lines,
            pairs=pairs,
            landscape=plane,
            calibration=self._calibration(found, best, greedy, uniform),
            override=self._override(found, best),
            worth=tuple(worth),
            growth=tuple(growth),
            spending=Spending(budget, shares, space.made),
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
        self.space.read(self.space.origin)
        readings = {i: self.space.read(self.space.ingredient(i)) for i in range(self.k)}
        quality = self.space.evaluator.metric.quality
        # Where the scores are equal, the lower loss says more than the order of arguments.
        return sorted(readings, key=lambda i: (-quality(readings[i].score), readings[i].loss, i))

    def _greedy(self) -> list[int]:
        """Positions kept by the greedy recipe, every candidate scored in full."""
        space = self.space
        recipe = Greedy(early_rejection=False, explain=False)
        with space.counting(space.split):
            soup = recipe.cook(
                self.kitchen.ingredients, evaluator=space.evaluator, choose_on=space.split,
                report=False,
            )  # fmt: skip
        position = {c.path: i for i, c in enumerate(self.kitchen.ingredients)}
        kept: list[int] = []
        for step in soup.steps:
            tried = [*kept, position[step.candidate]]
            space.note(self.kitchen.uniform(tried), space.split)
            kept = tried if step.accepted else kept
        return kept

    def _lines(
        self,
        ranking: Sequence[int],
        kept: Sequence[int],
        greedy: Place,
        uniform: Place,
        between: Sequence[tuple[str, str]],
        share: int,
    ) -> tuple[Line, ...]:
        space = self.space
        best, second = (space.ingredient(i) for i in ranking[:2])
        known = {p.name: p for p in (space.origin, greedy, uniform)}
        known |= {c.path: space.ingredient(i) for i, c in enumerate(self.kitchen.ingredients)}
        lines = [line(space, *_ends(known, names), n_points=_LINE) for names in between]
        wanted = [
            (best, second, "runs", _LINE),
            (space.origin, best, "base", _LINE),
            (best, greedy, "soup", _LINE),
            (best, uniform, "soup", _LINE),
            (space.origin, greedy, "base", _LINE),
            (space.origin, uniform, "base", _LINE),
        ]
        path = [
            space.mean(f"greedy of {n}" if n > 1 else best.name, kept[:n])
            for n in range(1, len(kept) + 1)
        ]
        wanted += [(a, b, "greedy path", _STEP_OF_GREEDY) for a, b in pairwise(path)]
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
        self, ranking: Sequence[int], greedy: Place, uniform: Place, share: int
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
        self, ranking: Sequence[int], greedy: Place, uniform: Place, share: int
    ) -> tuple[dict[str, ModelRow], dict[str, dict[str, Predictions]]]:
        """Scores on all splits of as many models as the share allows, and their predictions.

        Where it does not, models have their held-out score only.
        """
        space = self.space
        splits = [*self.tests, *self.shifts]
        middle = space.between(space.origin, space.ingredient(ranking[0]), 0.5)
        order = [
            ("run", space.ingredient(ranking[0])), ("soup", greedy), ("soup", uniform),
            ("base", space.origin), *(("run", space.ingredient(i)) for i in ranking[1:]),
            ("between", middle),
        ]  # fmt: skip
        affordable = share // len(splits) if splits else 0
        found: dict[str, dict[str, Predictions]] = {}
        models: dict[str, ModelRow] = {}
        for n, (kind, place) in enumerate(order):
            if kind == "between" and n >= affordable:
                continue
            where = [space.split, *(splits if n < affordable else [])]
            found[place.name] = {split: space.predictions(place, split) for split in where}
            if kind != "between":
                members = self._members(place) if kind == "soup" else ()
                scores = space.evaluator.scores_of(found[place.name], name=place.name)
                models[place.name] = ModelRow(place.name, kind, scores, members)
        everyone = [space.ingredient(i) for i in range(self.k)]
        if affordable >= self.k + 3:
            found["ensemble"] = {
                split: ensemble_predictions(space, everyone, split)
                for split in (space.split, *splits)
            }
            scores = space.evaluator.scores_of(found["ensemble"], name="the ensemble")
            models["ensemble"] = ModelRow(
                "ensemble", "ensemble", scores, tuple(p.name for p in everyone)
            )
        if affordable == 0:
            return models, {}
        return models, {n: by for n, by in found.items() if len(by) > 1}

    def _members(self, place: Place) -> tuple[str, ...]:
        return tuple(
            checkpoint.path
            for checkpoint, c in zip(self.kitchen.ingredients, place.coefficients, strict=True)
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
        best: Place,
        greedy: Place,
        uniform: Place,
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
        self, found: Mapping[str, Mapping[str, Predictions]], best: Place
    ) -> Override | None:
        middle = self.space.between(self.space.origin, best, 0.5).name
        names = (self.space.base.path, best.name, middle)
        if not self.tests or any(name not in found for name in names):
            return None
        return overrides(*(found[name][self.tests[0]] for name in names))

    def _worth(self, kept: Sequence[int], share: int) -> list[Contribution]:
        worth: list[Contribution] = []
        if share >= self.k:
            worth += leave_one_out(self.space, "uniform", range(self.k))
            share -= self.k
        if 1 < len(kept) < self.k and share >= len(kept):
            worth += leave_one_out(self.space, "greedy", kept)
        return worth

    def _growth(self, share: int) -> list[CurvePoint]:
        if self.k < 3 or share < self.k - 2:
            return []
        n_orders = min(_ORDERS, share // (self.k - 2))
        with self.space.counting(self.space.split):
            return ingredients_curve(self.kitchen, n_orders=n_orders, seed=self.seed)


def _ends(known: Mapping[str, Place], names: tuple[str, str]) -> tuple[Place, Place]:
    missing = [name for name in names if name not in known]
    if missing:
        raise RecipeError(
            f"{' and '.join(missing)}: no such model for a line; expected the path of an "
            "ingredient as it was given, the base's, uniform or greedy"
        )
    return known[names[0]], known[names[1]]


def _layers(space: Space) -> tuple[LayerMap, ...]:
    geometry = space.geometry
    distances = {move.path: move.layers for move in geometry.moves().ingredients}
    k = len(geometry.paths)
    one_hot = [[float(i == j) for i in range(k)] for j in range(k)]
    degrees = {}
    for layer in sorted(geometry.layers, key=natural_key):
        gram = geometry.layers[layer]
        found = [angle(gram, one_hot[i], one_hot[j]) for i, j in combinations(range(k), 2)]
        degrees[layer] = tuple(value for value in found if value is not None)
    return layer_maps(geometry.paths, distances, degrees)
