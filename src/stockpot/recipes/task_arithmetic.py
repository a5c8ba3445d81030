"""Task arithmetic: the base plus the scaled sum of what each fine-tuning added to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from stockpot._figures import AnyFigure, Axis, Column, Line, LineChart, Row, Rule, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import EvaluationError, RecipeError
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
    """

    scale: float
    curve: tuple[tuple[float, float | None], ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """`scale` and, where it was searched, `scales`."""
        scales: list[JSON] = [{"scale": scale, "score": score} for scale, score in self.curve]
        return {"scale": self.scale, **({"scales": scales} if scales else {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskArithmeticDetails:
        """The details in the JSON of a soup."""
        curve = tuple((point["scale"], point["score"]) for point in data.get("scales", ()))
        return cls(scale=data["scale"], curve=curve)

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The scale, and how it was found."""
        found = f", the best of {len(self.curve)} on {summary.chosen_on}" if self.curve else ""
        return (f"Task vectors are scaled by {self.scale:g}{found}.",)

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
                rules=(Rule(name=f"chosen, {self.scale:g}", value=self.scale),),
            ),
        )


@final
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(RecipeFromBase):
    """θ₀ + λ·Σ(θᵢ − θ₀): the base plus the sum of all task vectors, scaled by λ.

    λ = 1/N is the uniform mean of the N ingredients, and with one ingredient this is WiSE-FT;
    λ < 0 takes away what was learned. Without `scale`, λ is the best of `scales` and 1/N on the
    split that decides; ties go to the one nearest 1/N.

    Attributes:
        scale: λ, which is then not searched.
        scales: that are tried.

    Reference: Ilharco et al. 2023, arXiv 2212.04089, §2.
    """

    name = "task-arithmetic"
    title = "Task arithmetic"
    command = "arithmetic"
    summary = "Task arithmetic: add scaled task vectors to the base."
    about = (
        "A task vector is what fine-tuning added to the base. Their sum is scaled by --scale, or "
        "by the scale that is best on held-out data."
    )
    examples = (
        "stockpot arithmetic runs/ --base base.pt --task my_task.py:task -o sum.pt",
        "stockpot arithmetic a/ b/ --base base/ --scale 0.4 -o sum/",
        "stockpot arithmetic toxic/ --base base/ --scale=-0.5 -o less-toxic/",
    )
    details_type = TaskArithmeticDetails

    scale: float | None = option(
        None, excludes="scales", help="Of the sum of task vectors; negative takes it away."
    )
    scales: tuple[float, ...] | None = option(
        None, metavar="GRID", help="Scales to try on held-out data; default 0.05:1:0.05."
    )

    def __post_init__(self) -> None:
        if self.scales is not None and not self.scales:
            raise RecipeError("there are no scales to try; give at least one")

    @property
    def chooses(self) -> bool:
        """Whether the scale is searched."""
        return self.scale is None

    @property
    def alignment(self) -> BaseAlignment:
        """How the ingredients are aligned with the base."""
        return BaseAlignment(in_memory=self.chooses)

    def solve(self, context: RecipeContext) -> Solution:
        """Sum, and search the scale unless it is given."""
        n = len(context.ingredients) - 1
        details = (
            _search(context, (1 / n, *(GRID if self.scales is None else self.scales)))
            if self.scale is None
            else TaskArithmeticDetails(scale=self.scale)
        )
        return Solution(
            mixture=context.mixture(_coefficients(details.scale, n)),
            selected=context.paths[:n] if details.scale != 0 else [],
            details=details,
        )


def _coefficients(scale: float, n: int) -> list[float]:
    return [*[scale] * n, 1.0 - n * scale]


def _search(context: RecipeContext, scales: Iterable[float]) -> TaskArithmeticDetails:
    evaluator, split = context.choosing("task arithmetic")
    n = len(context.ingredients) - 1
    curve: list[tuple[float, float | None]] = []
    wanted = sorted(set(scales))
    for number, scale in enumerate(wanted, 1):
        try:
            found = evaluator.score(context.mixture(_coefficients(scale, n)), split)
            curve.append((scale, found.value))
        except EvaluationError:  # such as a variance below 0 in BatchNorm
            curve.append((scale, None))
        evaluator.progress(number, len(wanted), "scales")
    quality = evaluator.metric.quality
    known = [(scale, score) for scale, score in curve if score is not None]
    if not known:
        raise RecipeError(f"no scale gives a score on {split}; leave out what is at fault")
    best, _ = max(known, key=lambda item: (quality(item[1]), -abs(item[0] - 1 / n)))
    return TaskArithmeticDetails(scale=best, curve=tuple(curve))
