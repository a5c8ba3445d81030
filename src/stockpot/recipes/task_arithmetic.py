"""Task arithmetic: the base plus what each fine-tuning added to it, summed or merged, scaled."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from stockpot import _figures as figures
from stockpot._figures import AnyFigure, Axis, Column, Line, LineChart, Row, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import EvaluationError, RecipeError
from stockpot.mixing import Coefficients, Mixture, Rule
from stockpot.mixing.rules.base import Linear
from stockpot.mixing.rules.table import RULES, rule_from_text
from stockpot.mixing.rules.task_vectors import TaskVectorRule
from stockpot.recipes.base import Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.interpolation import BaseAlignment, RecipeFromBase
from stockpot.recipes.result import Details, Names, SoupSummary

GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Scales that are tried: 0.05, 0.1, …, 1."""


@dataclass(frozen=True, kw_only=True)
class TaskArithmeticDetails(Details):
    """What task arithmetic has to say.

    Attributes:
        scale: λ of the soup.
        curve: λ → score on the split that decides, of those that were tried; None for a scale that
            gives no number.
        rule: name of the rule by which task vectors were merged.
    """

    scale: float
    curve: tuple[tuple[float, float | None], ...] = ()
    rule: str = Linear.name

    def to_json(self) -> dict[str, JSON]:
        """`scale`; where it was searched, `scales`; where they were not summed, `rule`."""
        scales: list[JSON] = [{"scale": scale, "score": score} for scale, score in self.curve]
        found: dict[str, JSON] = {"scale": self.scale, **({"scales": scales} if scales else {})}
        return found if self.rule == Linear.name else {**found, "rule": self.rule}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskArithmeticDetails:
        """The details in the JSON of a soup."""
        curve = tuple((point["scale"], point["score"]) for point in data.get("scales", ()))
        return cls(scale=data["scale"], curve=curve, rule=data.get("rule", Linear.name))

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The scale, and how it was found."""
        found = f", the best of {len(self.curve)} on {summary.chosen_on}" if self.curve else ""
        how = "are" if self.rule == Linear.name else f"are merged by {self.rule} and"
        return (f"Task vectors {how} scaled by {self.scale:g}{found}.",)

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The score of every scale."""
        if not self.curve:
            return ()
        rows = tuple(
            Row(name=f"{scale:g}", cells=(score,), chosen=scale == self.scale)
            for scale, score in self.curve
        )
        columns = (Column(name="score on the data that chose"),)
        return (Table(name="scales", title="Scales", columns=columns, rows=rows, first="scale"),)

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """The score against the scale."""
        known = [(scale, score) for scale, score in self.curve if score is not None]
        if len(known) < 2:
            return ()
        line = Line(name="score", x=tuple(x for x, _ in known), y=tuple(y for _, y in known))
        return (
            LineChart(
                name="scales",
                title="Score by the scale of the task vectors",
                explanation="On the data that chose the scale.",
                x=Axis(name="scale"),
                y=Axis(name="score"),
                lines=(line,),
                rules=(figures.Rule(name=f"chosen, {self.scale:g}", value=self.scale),),
            ),
        )


def _task_vector_rules() -> list[str]:
    return [name for name, rule in RULES.items() if issubclass(rule, TaskVectorRule)]


def _task_vector_rule(text: str) -> Rule:
    """The rule that `text` asks for, as `rule_from_text` has it.

    Raises:
        ValueError: none has its name; those that merge task vectors are listed.
    """
    name = text.partition(",")[0].strip()
    if name not in RULES:
        known = _task_vector_rules()
        near = difflib.get_close_matches(name, known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"no rule is named {name!r}{meant}; expected one of {', '.join(known)}")
    return rule_from_text(text)


@final
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(RecipeFromBase):
    """θ₀ + λ·Σ(θᵢ − θ₀): the base plus the sum of all task vectors, scaled by λ.

    λ = 1/N is the uniform mean of the N ingredients, and with one ingredient this is WiSE-FT;
    λ < 0 takes away what was learned. Without `scale`, λ is the best of `scales` and 1/N on the
    split that decides; ties go to the one nearest 1/N.

    A `rule` merges the task vectors in another way than by their sum, such as `Ties(keep=0.2)` of
    `stockpot.mixing.rules.ties`; λ = 1 is then the rule as it is, and ties go to it.

    Attributes:
        rule: how task vectors are merged; None means their sum.
        scale: λ, which is then not searched.
        scales: that are tried.

    Reference: Ilharco et al. 2023, arXiv 2212.04089, §2.
    """

    name = "task-arithmetic"
    title = "Task arithmetic"
    command = "arithmetic"
    summary = "Task arithmetic: add task vectors, or merge them (TIES, …)."
    about = (
        "A task vector is what fine-tuning added to the base. Their sum, or what --rule makes of "
        "them (ties, dare, breadcrumbs, della, sce, iso-c, tsv-m), is scaled by --scale, or by "
        "the scale that is best on held-out data."
    )
    examples = (
        "stockpot arithmetic runs/ --base base.pt --task my_task.py:task -o sum.pt",
        "stockpot arithmetic a/ b/ --base base/ --scale 0.4 -o sum/",
        "stockpot arithmetic a/ b/ --base base/ --rule ties,keep=0.2 --scale 1 -o ties/",
        "stockpot arithmetic toxic/ --base base/ --scale=-0.5 -o less-toxic/",
    )
    details_type = TaskArithmeticDetails
    simplicity = 3

    rule: Rule | None = option(
        None,
        parse=_task_vector_rule,
        metavar="RULE[,OPTION=VALUE]…",
        help="How task vectors are merged; default: their sum. Options: docs/merging.md.",
    )
    scale: float | None = option(
        None, excludes="scales", help="Of the merged task vectors; negative takes them away."
    )
    scales: tuple[float, ...] | None = option(
        None, metavar="GRID", help="Scales to try on held-out data; default 0.05:1:0.05."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales is not None and not self.scales:
            raise RecipeError("there are no scales to try; give at least one")
        if self.rule is not None and not isinstance(self.rule, TaskVectorRule):
            raise RecipeError(
                f"the mixing rule {self.rule.name} merges no task vectors; expected one of "
                f"{', '.join(_task_vector_rules())}"
            )

    @property
    def chooses(self) -> bool:
        """Whether the scale is searched."""
        return self.scale is None

    @property
    def alignment(self) -> BaseAlignment:
        """How the ingredients are aligned with the base."""
        return BaseAlignment(in_memory=self.chooses)

    def solve(self, context: RecipeContext) -> Solution:
        """Merge, and search the scale unless it is given."""
        n = len(context.ingredients) - 1
        merged = self._merged(context)
        if self.scale is None:
            scales = GRID if self.scales is None else self.scales
            curve = _curve(context, merged, {self._neutral(n), *scales})
            scale = self._best(context, merged, curve, n)
        else:
            scale, curve = self.scale, ()
        name = Linear.name if self.rule is None else self.rule.name
        return Solution(
            mixture=merged(scale),
            selected=context.paths[:n] if scale != 0 else [],
            details=TaskArithmeticDetails(scale=scale, curve=curve, rule=name),
        )

    def _neutral(self, n: int) -> float:
        """The scale at which `n` task vectors are merged and no more: the mean, or the rule's."""
        return 1 / n if self.rule is None else 1.0

    def _merged(self, context: RecipeContext) -> Callable[[float], Mixture]:
        """Scale → the mixture; a rule is prepared once for all scales."""
        n = len(context.ingredients) - 1
        if self.rule is None:
            return lambda scale: context.mixture([*[scale] * n, 1.0 - n * scale])
        weights = Coefficients.per_model([*[1.0] * n, 0.0], any_sum=True)
        return context.mixed(weights, self.rule).with_scale

    def _best(
        self,
        context: RecipeContext,
        merged: Callable[[float], Mixture],
        curve: _Curve,
        n: int,
    ) -> float:
        evaluator, split = context.choosing("task arithmetic")
        known = [(scale, score) for scale, score in curve if score is not None]
        if not known:
            raise RecipeError(f"no scale gives a score on {split}; leave out what is at fault")
        neutral = self._neutral(n)

        def standing(item: tuple[float, float]) -> tuple[float, ...]:
            scale, score = item
            return evaluator.standing_of(score, lambda: merged(scale), split)

        best, _ = max(known, key=lambda item: (*standing(item), -abs(item[0] - neutral)))
        return best


_Curve = tuple[tuple[float, float | None], ...]


def _curve(
    context: RecipeContext, merged: Callable[[float], Mixture], scales: Iterable[float]
) -> _Curve:
    evaluator, split = context.choosing("task arithmetic")
    curve: list[tuple[float, float | None]] = []
    wanted = sorted(scales)
    for number, scale in enumerate(wanted, 1):
        try:
            curve.append((scale, evaluator.score(merged(scale), split).value))
        except EvaluationError:  # such as a variance below 0 in BatchNorm
            curve.append((scale, None))
        evaluator.progress(number, len(wanted), "scales")
    return tuple(curve)
