"""WiSE-FT: the line between the base and a fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, final

from stockpot._options import option
from stockpot.analysis.initialisation import (
    InitialisationCheck,
    check_initialisation,
    have_equal_samples,
)
from stockpot.errors import RecipeError
from stockpot.evaluate.batchnorm import calibration_set
from stockpot.evaluate.compare import p_value
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Role, Score
from stockpot.formats.memory import hold
from stockpot.io.memory import fits_in_memory
from stockpot.mixing.coefficients import Coefficients, layer_of
from stockpot.mixing.ingredients import Ingredients, Source, open_base
from stockpot.mixing.rules.singular import MonoSoup
from stockpot.recipes.base import Reference, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.fisher import diagonal_fisher, normalised
from stockpot.recipes.gain import require_categories
from stockpot.recipes.interpolation import (
    BaseAlignment,
    InterpolationPath,
    RecipeFromBase,
    groups_of,
)
from stockpot.recipes.interpolation_curve import (
    ScoredPath,
    best_alphas,
    diversity_of_ends,
    ensembles,
    gains_over_ends,
    mean_score,
    path_barrier,
    score_path,
)
from stockpot.recipes.interpolation_details import InterpolationPoint, LayerStep, WiseFTDetails
from stockpot.recipes.result import NOISE_LEVEL
from stockpot.recipes.soup import Soup

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.mixing import Mixture


GRID = tuple(round(0.05 * i, 2) for i in range(21))
"""The paper's grid: 0, 0.05, …, 1."""

_RECALIBRATED_AT = (0.0, 0.25, 0.5, 0.75, 1.0)

_LAYER_STEP = 0.25
"""How far a layer's own α is tried from that of the model."""


def _layer_alpha(text: str) -> tuple[str, float]:
    pattern, _, value = text.rpartition("=")
    try:
        alpha = float(value)
    except ValueError:
        pattern = ""
    if not pattern:
        raise ValueError(f"{text!r} is no pattern with an alpha; write for example 'head.*=1'")
    return pattern, alpha


@final
@dataclass(frozen=True, kw_only=True)
class WiseFT(RecipeFromBase):
    """(1−a)·θ₀ + a·θ₁ over every tensor; θ₁ is the mean of the ingredients, or has `weights`.

    α = 0.5 is the recommendation without domain knowledge, but it can cost points in distribution:
    look at the whole curve. Both ends and the middle are always part of it.

    BatchNorm statistics are mixed as the weights are, over every key of the state dict as in the
    paper, unless the evaluator was made with another policy; some points with statistics that are
    recomputed on the task's training set stand beside the curve.

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
        keep_categories: take no point that is worse than the base in a category of the data that
            decide, by more than noise. The base itself always qualifies.
        fisher: weight every element by how much it matters to either model.
        fisher_floor: least Fisher information of an element, where its mean over the model is 1.
        n_fisher: examples to estimate it by, of the task's calibration set (which is its training
            set where none is given), else of the split that decides.
        alternatives: also score what else needs no training, for comparison: the ensemble of
            probabilities, elements taken at random from either model, and MonoSoup, which shrinks
            the lesser singular directions of each matrix of θ₁ − θ₀, at its α-fold.
        weights: coefficients of the ingredients in θ₁, for the WiSE-FT of a soup.
        curve: score every point on every split; False scores the others only where it decides.
        seed: of the Fisher information and of what is taken at random.

    Reference: Wortsman et al. 2021, arXiv 2109.01903; for `fisher` Matena and Raffel 2021, arXiv
    2111.09832.
    """

    name = "wise-ft"
    batchnorm = "averaged"
    title = "WiSE-FT"
    command = "interpolate"
    summary = "Mix a base with its fine-tuned child (WiSE-FT)."
    details_type = WiseFTDetails
    checks_start = True
    simplicity = 2

    alpha: float | None = option(
        None, help="0 is BASE, 1 is TUNED; 0.5 where nothing better is known."
    )
    alphas: tuple[float, ...] | None = option(
        None,
        metavar="GRID",
        help="Points of the curve; 0, 0.5 and 1 belong. Default 0:1:0.05, or none with --alpha.",
    )
    objective: Literal["held-out", "both"] = option(
        "held-out", help="both: the mean over all held-out splits of the task."
    )
    by: Literal["model", "layer"] = option(
        "model", help="layer: layers may then move off the chosen alpha."
    )
    layer_alphas: Mapping[str, float] = option(
        dict,
        flags=("--layer-alpha",),
        metavar="PATTERN=ALPHA",
        parse=_layer_alpha,
        many=dict,
        help="Tensors that always have this alpha.",
    )
    keep_head: bool = option(
        False, help="Interpolate what the two share; a head that BASE does not have is TUNED's."
    )
    keep_categories: bool = option(
        False, help="Take no point that loses to BASE in a category, beyond noise."
    )
    fisher: bool = option(False, help="Weight every element by how much it matters to either.")
    fisher_floor: float = 1e-6
    n_fisher: int = 512
    alternatives: bool = option(
        False, help="Also score, to compare, what else needs no training, such as MonoSoup."
    )
    weights: tuple[float, ...] | None = None
    curve: bool = True
    seed: int = option(0, help="Of orders and of bootstrap intervals.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.alpha, *(self.alphas or ()), *self.layer_alphas.values()]
        bad = [a for a in given if a is not None and not 0 <= a <= 1]
        problems = [f"alpha is {', '.join(map(str, bad))}; expected 0 to 1"] if bad else []
        if self.by == "layer" and self.alpha is not None:
            problems.append("by layer α is chosen, and alpha gives it: leave one of them out")
        if self.keep_categories and self.alpha is not None:
            problems.append("alpha is given, so no point is chosen that keeps the categories")
        if not self.fisher_floor > 0 or self.n_fisher < 1:
            problems.append("fisher_floor and n_fisher must be more than 0")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def chooses(self) -> bool:
        """Whether α is chosen, and not given."""
        return self._draws and self.alpha is None

    @property
    def alignment(self) -> BaseAlignment:
        """How the tuned models are aligned with the base."""
        return BaseAlignment(keep_head=self.keep_head, shares=self.weights, in_memory=self._draws)

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

        Raises:
            RecipeError: there is nothing to choose by.
        """
        both = context.ingredients
        found = _starts(both) if context.report else []
        path = self._path(context, len(both) - 1, found)
        warnings = [*_identical(both), *_warnings(found, keep_head=self.keep_head)]
        if not self._draws or (self.alpha is not None and context.evaluator is None):
            details = WiseFTDetails(alpha=0.5 if self.alpha is None else self.alpha)
            return _solution(path, path.at(details.alpha), details, warnings)
        return self._choose_on_curve(path, warnings)

    def references(self, context: RecipeContext) -> Sequence[Reference]:
        """Both ends of the line; the one that is better on held-out data is to be beaten."""
        *tuned, base = context.ingredients
        n, evaluator = len(tuned), context.evaluator
        shares = [1.0 / n] * n if self.weights is None else list(self.weights)
        name = tuned[shares.index(max(shares))].path
        ends = [
            Reference(name="base", model=context.uniform([n]), path=base.path, role="base"),
            Reference(name="tuned", model=context.mixture([*shares, 0.0]), path=name),
        ]
        split = (
            context.choose_on or next(iter(_held_out(evaluator.task)), None) if evaluator else None
        )
        better = 1
        if evaluator is not None and split is not None:
            values = [evaluator.score(end.model, split).value for end in ends]
            better = 0 if evaluator.metric.better(values[0], values[1]) else 1
        return [replace(end, is_target=i == better) for i, end in enumerate(ends)]

    def cook_each(
        self,
        tuned: Iterable[Source],
        task: Task | None = None,
        *,
        base: Source,
        **options: object,
    ) -> list[Soup]:
        """A soup of the base and each of several tuned models; the base is read once for all."""
        start = open_base(base)
        if self._draws and fits_in_memory(4 * start.n_bytes):
            start = hold(start)
        return [self.cook([one], task, base=start, **options) for one in tuned]  # type: ignore[arg-type]

    @property
    def _draws(self) -> bool:
        return self.alpha is None or self.alphas is not None

    def _path(
        self, context: RecipeContext, n_tuned: int, found: list[InitialisationCheck]
    ) -> InterpolationPath:
        shares = (1.0 / n_tuned,) * n_tuned if self.weights is None else self.weights
        if len(shares) != n_tuned:
            raise RecipeError(f"{len(shares)} weights for {n_tuned} ingredients; give one each")
        # Of a model that is of another start as a whole, no layer is its head.
        related = [one for one in found if self.keep_head and not one.is_different]
        head = {layer for one in related for layer in _own_layers(one)}
        fixed, group_of = groups_of(context.ingredients, self.by, self.layer_alphas, head)
        path = InterpolationPath(context, shares, fixed, group_of)
        return self._fisher_path(path) if self.fisher else path

    def _fisher_path(self, path: InterpolationPath) -> InterpolationPath:
        evaluator = path.context.evaluator
        if evaluator is None or not evaluator.has_outputs:
            raise RecipeError(
                "the Fisher information comes from data, by gradients: give a task (--task)"
            )
        dataset = evaluator.task.calibration_set
        if dataset is None:
            split = split_to_choose_on(evaluator.task, path.context.choose_on)
            dataset = evaluator.task.splits[split].dataset
        base, tuned = (
            normalised(
                diagonal_fisher(
                    evaluator, path.at(end), dataset, n_examples=self.n_fisher, seed=self.seed
                ),
                floor=self.fisher_floor,
            )
            for end in (0.0, 1.0)
        )
        return path.with_fisher(base, tuned)

    def _choose_on_curve(self, path: InterpolationPath, warnings: list[str]) -> Solution:
        context = path.context
        scorer = context.choosing if self.chooses else context.scoring
        evaluator, split = scorer(self.name)
        every = context.report and self.curve
        deciding = _held_out(evaluator.task) if self.objective == "both" else [split]
        splits = list(evaluator.task.splits) if every else deciding
        grid = {0.0, 0.5, 1.0, *(GRID if self.alphas is None else self.alphas)}
        given = () if self.alpha is None else (self.alpha,)
        scored = score_path(evaluator, path.at, {*grid, *given}, splits)
        if self.keep_categories:
            require_categories(evaluator, deciding)
            # Layers with an α of their own have it at the point 0 too: that is not the base.
            head = {group: a for group, a in path.fixed.items() if group not in self.layer_alphas}
            scored = replace(scored, base=replace(path, fixed=head).at(0.0))
        keep = self.keep_categories
        alpha = scored.best_alpha(deciding, keep=keep) if self.alpha is None else self.alpha
        mixture, scores, layers = path.at(alpha), dict(scored.scores(alpha)), None
        if self.by == "layer":
            mixture, layers, scores = _choose_by_layer(scored, path, alpha, deciding, keep=keep)
        has_moved = any(step.accepted for step in layers or ())
        details = WiseFTDetails(
            alpha=alpha, curve=scored.points, rule=self._rule(deciding), layers=layers,
            moved=scores if has_moved else {},
        )  # fmt: skip
        if every:
            details = self._measured(details, scored, path, mixture, split)
        warnings = [*warnings, *details.warnings(), *_exchanged(scored, path, split)]
        return _solution(path, mixture, details, warnings, scores if every else None)

    def _rule(self, deciding: list[str]) -> str:
        if self.alpha is not None:
            return "given"
        mean = "the mean of the scores on " if len(deciding) > 1 else "the score on "
        kept = ", of those that lose no category to the base" if self.keep_categories else ""
        return f"best by {mean}{' and '.join(deciding)}{kept}; ties to the α nearest 0.5"

    def _measured(
        self,
        details: WiseFTDetails,
        scored: ScoredPath,
        path: InterpolationPath,
        soup: Mixture,
        split: str,
    ) -> WiseFTDetails:
        """The details with what is shown beside the curve."""
        splits = scored.evaluator.task.splits
        tests = [s for s in scored.splits if splits[s].role is Role.TEST]
        details = replace(details, best=best_alphas(scored.points, tests[0] if tests else split))
        if not scored.evaluator.has_outputs:
            return details
        return replace(
            details,
            recalibrated=_recalibrated(scored, path, details.alpha),
            gains=gains_over_ends(scored, soup),
            ensemble=ensembles(scored),
            barrier=path_barrier(scored, split),
            barrier_split=split,
            diversity=diversity_of_ends(scored),
            alternatives=self._others(scored, path) if self.alternatives else {},
        )

    def _others(
        self, scored: ScoredPath, path: InterpolationPath
    ) -> dict[str, tuple[InterpolationPoint, ...]]:
        at_random = score_path(
            scored.evaluator, lambda a: path.randomly(a, seed=self.seed), scored.alphas,
            scored.splits, label="points of random interpolation",
        )  # fmt: skip
        found = {
            "ensemble-of-probabilities": ensembles(scored, of_probabilities=True),
            "random-elements": at_random.points,
        }
        if path.shares == (1.0,):
            alone = Coefficients.per_model([1.0, 0.0])
            towards = path.context.mixed(alone, MonoSoup()).with_scale
            found["mono-soup"] = score_path(
                scored.evaluator, towards, scored.alphas, scored.splits, label="points of MonoSoup"
            ).points
        return found


def _recalibrated(
    scored: ScoredPath, path: InterpolationPath, alpha: float
) -> tuple[InterpolationPoint, ...]:
    """Some points with recomputed BatchNorm statistics, where they were scored with averaged ones.

    Each takes a pass over the training set, so not every point of the curve has one.
    """
    evaluator = scored.evaluator
    averaged = evaluator.batchnorm_policy(path.at(0.5)) == "averaged"
    if not averaged or calibration_set(evaluator.task, "recalibrated") is None:
        return ()
    alphas = {*_RECALIBRATED_AT, alpha} & set(scored.alphas)
    return score_path(
        evaluator.with_batchnorm("recalibrated"),
        path.at,
        alphas,
        scored.splits,
        label="points with recalibrated BatchNorm statistics",
    ).points


def _choose_by_layer(
    scored: ScoredPath, path: InterpolationPath, alpha: float, deciding: list[str], *, keep: bool
) -> tuple[Mixture, tuple[LayerStep, ...], dict[str, Score]]:
    """Let each layer move off the chosen α where that is better; one pass, the last first."""
    evaluator = scored.evaluator
    layers: dict[str, float] = {}
    tried: list[LayerStep] = []
    names = dict.fromkeys(path.group_of.values())
    current = path.at(alpha)
    best = scored.standing(current, deciding)
    free = [name for name in reversed(names) if name not in path.fixed]
    for number, name in enumerate(free, 1):
        for own in {max(0.0, alpha - _LAYER_STEP), min(1.0, alpha + _LAYER_STEP)} - {alpha}:
            mixture = path.at(alpha, {**layers, name: own})
            value = mean_score(evaluator.scores(mixture, deciding), deciding)
            standing = scored.standing(mixture, deciding)
            accepted = standing > best and not (keep and scored.loses_categories(mixture, deciding))
            p = [_p_value(evaluator, mixture, current, split) for split in deciding]
            tried.append(LayerStep(name, own, value, accepted, p[0] if len(p) == 1 else None))
            if accepted:
                layers[name], best, current = own, standing, mixture
        evaluator.progress(number, len(free), "layers")
    return current, tuple(tried), evaluator.scores(current, scored.splits)


def _solution(
    path: InterpolationPath,
    mixture: Mixture,
    details: WiseFTDetails,
    notes: list[str],
    scores: Mapping[str, Score] | None = None,
) -> Solution:
    vectors = mixture.coefficients.vectors.values()
    part = [any(vector[i] != 0 for vector in vectors) for i in range(len(path.shares))]
    return Solution(
        mixture=mixture,
        selected=[p for p, taken in zip(path.context.paths, part, strict=False) if taken],
        details=details,
        notes=notes,
        scores=scores,
    )


def _held_out(task: Task) -> list[str]:
    return [name for name, split in task.splits.items() if split.role is Role.HELD_OUT]


def _p_value(evaluator: Evaluator, a: Mixture, b: Mixture, split: str) -> float | None:
    return p_value(
        evaluator.predictions(a, split), evaluator.predictions(b, split), seed=evaluator.seed
    )


def _starts(both: Ingredients) -> list[InitialisationCheck]:
    """Whether each tuned model comes from the base, which is the last ingredient."""
    *tuned, base = both
    return [check_initialisation(model, base, both.averaged) for model in tuned]


def _identical(both: Ingredients) -> list[str]:
    """A warning for each tuned model that is the base; only likely ones are read to the end."""
    *tuned, base = both
    return [
        f"warning: {model.path} holds the same weights as {base.path}: every point between the two "
        "is that model, and what differs along the curve is how it was scored"
        for model in tuned
        if have_equal_samples(model, base) and model.fingerprint == base.fingerprint
    ]


def _exchanged(scored: ScoredPath, path: InterpolationPath, split: str) -> list[str]:
    """A warning where the base is the better model by far of what fine-tuning was for."""
    ends = scored.scores(0.0)[split], scored.scores(1.0)[split]
    p = _p_value(scored.evaluator, path.at(0.0), path.at(1.0), split)
    if p is None or p > NOISE_LEVEL or not scored.evaluator.metric.better(*(e.value for e in ends)):
        return []
    *tuned, base = path.context.ingredients
    return [
        f"warning: on {split} the base {base.path} scores {ends[0].value:.4f} and the tuned model "
        f"{tuned[0].path} {ends[1].value:.4f}: are the two exchanged? The base comes first, then "
        "what was fine-tuned from it"
    ]


def _own_layers(found: InitialisationCheck) -> list[str]:
    """Layers that do not come from the base, though the rest of the model does."""
    return list(dict.fromkeys(layer_of(name) for name in sorted(found.unrelated)))


def _warnings(found: list[InitialisationCheck], *, keep_head: bool) -> list[str]:
    texts = []
    for one in found:
        if one.is_different:
            texts.append(one.warning())
        elif one.unrelated and not keep_head:
            texts.append(
                f"warning: {', '.join(_own_layers(one)[:4])} of {one.path} does not come from "
                f"{one.other}, as a newly initialised head does not: interpolate the rest and "
                "keep it with keep_head=True (--keep-head)"
            )
        elif one.unrelated:
            texts.append(
                f"kept as {one.path} has them, for they do not come from {one.other}: "
                f"{', '.join(_own_layers(one))}"
            )
    return texts
