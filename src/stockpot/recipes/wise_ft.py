"""WiSE-FT: the line between the base and a fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stockpot._types import JSON
from stockpot.checkpoint.ingredients import Ingredients, OnMismatch, Source
from stockpot.checkpoint.spec import DType
from stockpot.errors import RecipeError
from stockpot.evaluation.scoring import Evaluator, scores_to_json
from stockpot.mixing import Mixture, pruned_alike
from stockpot.models.task import Role, Score
from stockpot.recipes.base import Kitchen, prepare
from stockpot.recipes.soup import Soup, serve

if TYPE_CHECKING:
    from stockpot.models.task import Task

__all__ = ["GRID", "WiseFT"]

GRID = tuple(round(0.05 * i, 2) for i in range(21))
"""The paper's grid: 0, 0.05, …, 1."""


@dataclass(frozen=True)
class WiseFT:
    """(1−a)·θ₀ + a·θ₁ over every tensor; θ₁ is the mean of the ingredients, or has `weights`.

    α = 0.5 is the recommendation without domain knowledge, but it can cost points in distribution:
    look at the whole curve. Both ends are always part of it.

    Attributes:
        alpha: one point, which is then not chosen; without it the best of `alphas` is.
        alphas: the grid; 0 and 1 are added.
        objective: `"held-out"`: the score on the split that decides; `"mean"`: the mean over all
            held-out splits. Ties go to the α nearest 0.5.
        weights: coefficients of the ingredients in θ₁, for the WiSE-FT of a soup.
        curve: score every point on every split; False scores the others only where it decides.

    Reference: Wortsman et al. 2021, arXiv 2109.01903.
    """

    alpha: float | None = None
    alphas: tuple[float, ...] = GRID
    objective: str = "held-out"
    weights: tuple[float, ...] | None = None
    curve: bool = True

    name = "wise-ft"

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
        """Interpolate, and choose where unless `alpha` says so; see `Recipe.cook`.

        Raises:
            RecipeError: there is no base, an α is not in 0..1, or there is nothing to choose by.
        """
        chooses = self.alpha is None
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report, chooses=chooses,
        )  # fmt: skip
        line = _Line(kitchen, self._tuned(kitchen))
        bad = [a for a in (*self.alphas, *_some(self.alpha)) if not 0 <= a <= 1]
        if bad:
            raise RecipeError(f"alpha is {', '.join(map(str, bad))}; expected 0 to 1")
        if self.alpha is not None:
            return self._served(kitchen, line, self.alpha, {"alpha": self.alpha})
        points = self._curve(kitchen, line)
        alpha, scores = self._choose(kitchen, points)
        told: dict[str, JSON] = {
            "alpha": alpha,
            "curve": [{"alpha": a, "scores": scores_to_json(s)} for a, s in points.items()],
            "chosen": {"alpha": alpha, "scores": scores_to_json(scores)},
            "best": _best_per_split(points),
        }
        return self._served(kitchen, line, alpha, told, scores if self.curve else None)

    def _served(
        self,
        kitchen: Kitchen,
        line: _Line,
        alpha: float,
        extra: dict[str, JSON],
        scores: dict[str, Score] | None = None,
    ) -> Soup:
        selected = [i for i, c in enumerate(line.tuned) if c != 0] if alpha > 0 else []
        known = dict(scores) if scores is not None and kitchen.report else None
        return serve(
            self, line.kitchen, line.at(alpha), selected=selected, extra=extra, scores=known
        )

    def _tuned(self, kitchen: Kitchen) -> tuple[float, ...]:
        k = len(kitchen.ingredients)
        if kitchen.ingredients.base is None:
            raise RecipeError(
                "WiSE-FT interpolates from a base, and there is none: give base=… (--base)"
            )
        if self.weights is None:
            return (1.0 / k,) * k
        if len(self.weights) != k:
            raise RecipeError(f"{len(self.weights)} weights for {k} ingredients; give one each")
        return self.weights

    def _curve(self, kitchen: Kitchen, line: _Line) -> dict[float, dict[str, Score]]:
        evaluator, split = kitchen.scoring(self.name)
        every = kitchen.report and self.curve
        splits = list(evaluator.task.splits) if every else self._deciding(evaluator, split)
        grid = sorted({0.0, 1.0, *self.alphas})
        points: dict[float, dict[str, Score]] = {}
        for number, alpha in enumerate(grid, 1):
            points[alpha] = evaluator.scores(line.at(alpha), splits)
            evaluator.progress(number, len(grid), "points of the curve")
        return points

    def _deciding(self, evaluator: Evaluator, split: str) -> list[str]:
        if self.objective == "held-out":
            return [split]
        if self.objective == "mean":
            return [s for s, data in evaluator.task.splits.items() if data.role is Role.HELD_OUT]
        raise RecipeError(f"objective is {self.objective!r}, expected held-out or mean")

    def _choose(
        self, kitchen: Kitchen, points: dict[float, dict[str, Score]]
    ) -> tuple[float, dict[str, Score]]:
        evaluator, split = kitchen.scoring(self.name)
        names = self._deciding(evaluator, split)
        sign = 1 if evaluator.metric.higher_is_better else -1

        def quality(alpha: float) -> tuple[float, float]:
            value = sum(points[alpha][name].value for name in names) / len(names)
            return sign * value, -abs(alpha - 0.5)

        alpha = max(points, key=quality)
        return alpha, points[alpha]


class _Line:
    """Mixtures of base and tuned; the base is the first ingredient of a list of its own."""

    def __init__(self, kitchen: Kitchen, tuned: tuple[float, ...]) -> None:
        given = kitchen.ingredients
        if given.base is None:
            raise AssertionError("checked before")
        how = given.on_mismatch
        if how == "leave-out":  # they fit by now, and the base cannot be left out
            how = "common" if len(given.averaged) < len(given.specs) else "error"
        both, sparsity = pruned_alike(
            Ingredients([*given, given.base], base=given.base, on_mismatch=how)
        )
        self.kitchen = replace(kitchen, ingredients=both, sparsity=sparsity)
        self.tuned = tuned

    def at(self, alpha: float) -> Mixture:
        """The point α; its ends are the base and the tuned model themselves."""
        return self.kitchen.mixture([*(alpha * c for c in self.tuned), 1.0 - alpha])


def _some(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _best_per_split(points: dict[float, dict[str, Score]]) -> JSON:
    """α of the best value on each split, to read and not to choose by."""
    best: dict[str, JSON] = {}
    for name, score in next(iter(points.values())).items():
        sign = 1 if score.higher_is_better else -1
        ranking = [(sign * found[name].value, -abs(a - 0.5), a) for a, found in points.items()]
        best[name] = max(ranking)[2]
    return best
