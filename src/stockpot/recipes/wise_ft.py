"""WiSE-FT: the line between the base and a fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from stockpot._types import JSON
from stockpot.analysis.barrier import HIGH_BARRIER
from stockpot.analysis.initialisation import InitialisationCheck, check_initialisation
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import p_value, scores_to_json
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Role, Score
from stockpot.formats.memory import hold
from stockpot.io.memory import fits_in_memory
from stockpot.mixing.coefficients import layer_of
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source, open_sources
from stockpot.recipes._curve import (
    Curve,
    along,
    barrier_of,
    best_alphas,
    diversity_of,
    ensembles,
    gains,
    points_to_json,
)
from stockpot.recipes._line import Line, align, groups_of
from stockpot.recipes.base import Recipe, RecipeContext, Solution
from stockpot.recipes.fisher import diagonal_fisher, normalised
from stockpot.recipes.result import RecordedDetails
from stockpot.recipes.soup import Soup

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.mixing import Mixture


GRID = tuple(round(0.05 * i, 2) for i in range(21))
"""The paper's grid: 0, 0.05, …, 1."""

_LAYER_STEP = 0.25
"""How far a layer's own α is tried from that of the model."""


@final
@dataclass(frozen=True, kw_only=True)
class WiseFT(Recipe):
    """(1−a)·θ₀ + a·θ₁ over every tensor; θ₁ is the mean of the ingredients, or has `weights`.

    α = 0.5 is the recommendation without domain knowledge, but it can cost points in distribution:
    look at the whole curve. Both ends and the middle are always part of it.

    Attributes:
        alpha: a given point, which is then not chosen; without it the best of `alphas` is.
        alphas: the grid, to which 0, 0.5 and 1 are added; None is the paper's grid where a point
            is to be chosen, and no curve where it is given.
        objective: `"held-out"`: the score on the split that decides; `"both"`: the mean over all
            held-out splits, of which there must be several (such as one of another distribution).
            Ties go to the α nearest 0.5.
        by: `"model"`: one α; `"layer"`: from the chosen α on each layer, the last first, tries one
            0.25 lower and higher, and keeps it where the objective rises. Many choices on one
            split: look at their p-values.
        layer_alphas: shell pattern of tensor names → the α that these always have.
        keep_head: what the base does not have, in name or shape, comes from the tuned model, and
            so do layers that do not come from the base's initialisation.
        fisher: weight every element by how much it matters to either model.
        fisher_floor: least Fisher information of an element, where its mean over the model is 1.
        n_fisher: examples to estimate it by, of the task's calibration set (which is its training
            set where none is given), else of the split that decides.
        alternatives: also score what else needs no training, for comparison: the ensemble of
            probabilities, and elements taken at random from either model.
        weights: coefficients of the ingredients in θ₁, for the WiSE-FT of a soup.
        curve: score every point on every split; False scores the others only where it decides.
        seed: of the Fisher information and of what is taken at random.

    Reference: Wortsman et al. 2021, arXiv 2109.01903; for `fisher` Matena and Raffel 2021, arXiv
    2111.09832.
    """

    name = "wise-ft"
    title = "WiSE-FT"
    command = "interpolate"
    summary = "Mix a base with its fine-tuned child (WiSE-FT)."
    details_type = RecordedDetails
    needs_base = True
    simplicity = 2

    alpha: float | None = None
    alphas: tuple[float, ...] | None = None
    objective: Literal["held-out", "both"] = "held-out"
    by: Literal["model", "layer"] = "model"
    layer_alphas: Mapping[str, float] = field(default_factory=dict)
    keep_head: bool = False
    fisher: bool = False
    fisher_floor: float = 1e-6
    n_fisher: int = 512
    alternatives: bool = False
    weights: tuple[float, ...] | None = None
    curve: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        given = [self.alpha, *(self.alphas or ()), *self.layer_alphas.values()]
        bad = [a for a in given if a is not None and not 0 <= a <= 1]
        problems = [f"alpha is {', '.join(map(str, bad))}; expected 0 to 1"] if bad else []
        if self.objective not in ("held-out", "both"):
            problems.append(f"objective is {self.objective!r}, expected held-out or both")
        if self.by not in ("model", "layer"):
            problems.append(f"by is {self.by!r}, expected model or layer")
        if self.by == "layer" and self.alpha is not None:
            problems.append("by layer α is chosen, and alpha gives it: leave one of them out")
        if not self.fisher_floor > 0 or self.n_fisher < 1:
            problems.append("fisher_floor and n_fisher must be more than 0")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def chooses(self) -> bool:
        """Whether α is chosen, and not given."""
        return self._draws and self.alpha is None

    def align(
        self,
        ingredients: Ingredients | Iterable[Source],
        *,
        base: Source | None,
        on_mismatch: OnMismatch,
    ) -> Ingredients:
        """The tuned models and then the base, as ingredients of one list.

        Raises:
            RecipeError: there is no base.
        """
        both, _ = align(
            ingredients, base, on_mismatch=on_mismatch, keep_head=self.keep_head,
            shares=self.weights, in_memory=self._draws,
        )  # fmt: skip
        return both

    def selection_split(self, task: Task, choose_on: str | None) -> str | None:
        """The split whose score stands for the objective; with both, any held-out one will do."""
        if not self._draws and choose_on is None:
            return None
        if self.objective == "held-out" or choose_on is not None:
            return split_to_choose_on(task, choose_on)
        held_out = _held_out(task)
        if len(held_out) < 2:
            raise RecipeError(
                "the objective is both, and the held-out splits of the task are "
                f"{', '.join(held_out) or 'none'}; expected two or more, such as one of another "
                "distribution: give the task another, or use objective held-out"
            )
        return held_out[0]

    def solve(self, context: RecipeContext) -> Solution:
        """Interpolate, and choose where unless `alpha` says so.

        The soup's details hold `alpha`, and of a curve: `curve`, `chosen` and by which `rule`,
        `half` (α = 0.5), `best` (α by objective, to read), `gains` (chosen against both ends),
        `ensemble`, `alternatives`, `barrier`, `diversity`, and `layers` where α was chosen by
        layer.

        Raises:
            RecipeError: there is nothing to choose by.
        """
        both = context.ingredients
        found = _starts(both) if context.report else []
        line = self._line(context, len(both) - 1, found)
        warnings = [] if self.keep_head else _warnings(found)
        if not self._draws or (self.alpha is not None and context.evaluator is None):
            alpha = 0.5 if self.alpha is None else self.alpha
            return self._solution(line, line.at(alpha), {"alpha": alpha}, warnings)
        return self._along(line, warnings)

    def cook_each(
        self,
        tuned: Iterable[Source],
        task: Task | None = None,
        *,
        base: Source,
        **options: object,
    ) -> list[Soup]:
        """A soup of the base and each of several tuned models; the base is read once for all."""
        start = open_sources([base])[0]
        if self._draws and fits_in_memory(4 * start.n_bytes):
            start = hold(start)
        return [self.cook([one], task, base=start, **options) for one in tuned]  # type: ignore[arg-type]

    @property
    def _draws(self) -> bool:
        return self.alpha is None or self.alphas is not None

    def _line(self, context: RecipeContext, n_tuned: int, found: list[InitialisationCheck]) -> Line:
        shares = (1.0 / n_tuned,) * n_tuned if self.weights is None else self.weights
        if len(shares) != n_tuned:
            raise RecipeError(f"{len(shares)} weights for {n_tuned} ingredients; give one each")
        head = {layer for one in found for layer in _own_layers(one)} if self.keep_head else ()
        fixed, group_of = groups_of(context.ingredients, self.by, self.layer_alphas, head)
        line = Line(context, shares, fixed, group_of)
        return self._fisher_line(line) if self.fisher else line

    def _fisher_line(self, line: Line) -> Line:
        evaluator = line.context.evaluator
        if evaluator is None or not evaluator.has_outputs:
            raise RecipeError(
                "the Fisher information comes from data, by gradients: give a task (--task)"
            )
        dataset = evaluator.task.calibration_set
        if dataset is None:
            split = split_to_choose_on(evaluator.task, line.context.choose_on)
            dataset = evaluator.task.splits[split].dataset
        base, tuned = (
            normalised(
                diagonal_fisher(
                    evaluator, line.at(end), dataset, n_examples=self.n_fisher, seed=self.seed
                ),
                floor=self.fisher_floor,
            )
            for end in (0.0, 1.0)
        )
        return line.with_fisher(base, tuned)

    def _along(self, line: Line, warnings: list[str]) -> Solution:
        context = line.context
        scorer = context.choosing if self.chooses else context.scoring
        evaluator, split = scorer(self.name)
        every = context.report and self.curve
        deciding = _held_out(evaluator.task) if self.objective == "both" else [split]
        splits = list(evaluator.task.splits) if every else deciding
        grid = {0.0, 0.5, 1.0, *(GRID if self.alphas is None else self.alphas)}
        given = () if self.alpha is None else (self.alpha,)
        curve = along(evaluator, line.at, {*grid, *given}, splits)
        alpha = _choose(curve, deciding) if self.alpha is None else self.alpha
        scores = dict(curve.points[alpha])
        told: dict[str, JSON] = {
            "alpha": alpha,
            "curve": points_to_json(curve.points),
            "chosen": {"alpha": alpha, "scores": scores_to_json(scores)},
            "rule": self._rule(deciding),
        }
        mixture = line.at(alpha)
        if self.by == "layer":
            mixture, layers, scores = self._by_layer(curve, line, alpha, deciding)
            told |= {"layers": layers}
        if every:
            told |= self._told(curve, line, alpha, split)
            warnings = [*warnings, *_curve_warnings(told)]
        return self._solution(line, mixture, told, warnings, scores if every else None)

    def _rule(self, deciding: list[str]) -> str:
        if self.alpha is not None:
            return "given"
        mean = "the mean of the scores on " if len(deciding) > 1 else "the score on "
        return f"best by {mean}{' and '.join(deciding)}; ties to the α nearest 0.5"

    def _told(self, curve: Curve, line: Line, alpha: float, split: str) -> dict[str, JSON]:
        splits = curve.evaluator.task.splits
        tests = [s for s in curve.splits if splits[s].role is Role.TEST]
        reference = tests[0] if tests else split
        told: dict[str, JSON] = {
            "half": {"alpha": 0.5, "scores": scores_to_json(dict(curve.points[0.5]))},
            "best": best_alphas(curve.points, reference),
        }
        if not curve.evaluator.has_outputs:
            return told
        told |= {
            "gains": gains(curve, alpha),
            "ensemble": points_to_json(ensembles(curve)),
            "barrier": barrier_of(curve, split),
            "diversity": diversity_of(curve),
        }
        return {**told, "alternatives": self._others(curve, line)} if self.alternatives else told

    def _others(self, curve: Curve, line: Line) -> JSON:
        at_random = along(
            curve.evaluator, lambda a: line.randomly(a, seed=self.seed), curve.points,
            curve.splits, label="points of random interpolation",
        )  # fmt: skip
        return {
            "ensemble-of-probabilities": points_to_json(ensembles(curve, of_probabilities=True)),
            "random-elements": points_to_json(at_random.points),
        }

    def _by_layer(
        self, curve: Curve, line: Line, alpha: float, deciding: list[str]
    ) -> tuple[Mixture, JSON, dict[str, Score]]:
        """Let each layer move off the chosen α where that is better; one pass, the last first."""
        evaluator = curve.evaluator
        layers: dict[str, float] = {}
        tried: list[JSON] = []
        names = dict.fromkeys(line.group_of.values())
        best, current = _value(curve.points[alpha], deciding), line.at(alpha)
        free = [name for name in reversed(names) if name not in line.fixed]
        for number, name in enumerate(free, 1):
            for own in {max(0.0, alpha - _LAYER_STEP), min(1.0, alpha + _LAYER_STEP)} - {alpha}:
                mixture = line.at(alpha, {**layers, name: own})
                value = _value(evaluator.scores(mixture, deciding), deciding)
                accepted = evaluator.metric.better(value, best)
                p = [_p_value(evaluator, mixture, current, split) for split in deciding]
                tried.append({"layer": name, "alpha": own, "score": value, "accepted": accepted,
                              "p_value": p[0] if len(p) == 1 else None})  # fmt: skip
                if accepted:
                    layers[name], best, current = own, value, mixture
            evaluator.progress(number, len(free), "layers")
        return current, tried, evaluator.scores(current, curve.splits)

    def _solution(
        self,
        line: Line,
        mixture: Mixture,
        data: dict[str, JSON],
        notes: list[str],
        scores: Mapping[str, Score] | None = None,
    ) -> Solution:
        vectors = mixture.coefficients.vectors.values()
        part = [any(vector[i] != 0 for vector in vectors) for i in range(len(line.shares))]
        return Solution(
            mixture=mixture,
            selected=[p for p, taken in zip(line.context.paths, part, strict=False) if taken],
            details=RecordedDetails(data=data),
            notes=notes,
            scores=scores,
        )


def _held_out(task: Task) -> list[str]:
    return [name for name, split in task.splits.items() if split.role is Role.HELD_OUT]


def _value(scores: Mapping[str, Score], names: list[str]) -> float:
    return sum(scores[name].value for name in names) / len(names)


def _p_value(evaluator: Evaluator, a: Mixture, b: Mixture, split: str) -> float | None:
    return p_value(
        evaluator.predictions(a, split), evaluator.predictions(b, split), seed=evaluator.seed
    )


def _choose(curve: Curve, deciding: list[str]) -> float:
    quality = curve.evaluator.metric.quality
    return max(
        curve.points,
        key=lambda alpha: (quality(_value(curve.points[alpha], deciding)), -abs(alpha - 0.5)),
    )


def _starts(both: Ingredients) -> list[InitialisationCheck]:
    """Whether each tuned model comes from the base, which is the last ingredient."""
    *tuned, base = both
    return [check_initialisation(model, base, both.averaged) for model in tuned]


def _own_layers(found: InitialisationCheck) -> list[str]:
    """Layers that do not come from the base, though the rest of the model does."""
    return list(dict.fromkeys(layer_of(name) for name in sorted(found.unrelated)))


def _warnings(found: list[InitialisationCheck]) -> list[str]:
    texts = []
    for one in found:
        if one.is_different:
            texts.append(one.warning())
        elif one.unrelated:
            texts.append(
                f"warning: {', '.join(_own_layers(one)[:4])} of {one.path} does not come from "
                f"{one.other}, as a newly initialised head does not: interpolate the rest and "
                "keep it with keep_head=True (--keep-head)"
            )
    return texts


def _curve_warnings(told: Mapping[str, JSON]) -> list[str]:
    found = told.get("barrier")
    if not isinstance(found, dict):
        return []
    height, alpha = found["height"], found["alpha"]
    if not isinstance(height, float) or height <= HIGH_BARRIER:
        return []
    return [
        f"warning: at α = {alpha} the loss lies {height:.2f} nat above the straight line between "
        "the two ends: there is a barrier on the path, and one of the ends is the better choice"
    ]
