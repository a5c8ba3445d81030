"""Reports that stockpot 0.1 wrote: their curves, decisions and phases become figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stockpot._figures import (
    AnyFigure,
    Axis,
    Line,
    LineChart,
    Point,
    Rule,
    ScatterChart,
)
from stockpot._records import parse
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.evaluate.task import Score
from stockpot.recipes.result import (
    SoupSummary,
    Step,
    coefficients_heatmap,
    is_share,
    steps_chart,
    steps_table,
)
from stockpot.report.model import Report, ScoreRecord, Scores, score_axis, split_name


@dataclass(frozen=True, slots=True)
class _CurvePoint:
    x: float
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Curve:
    name: str
    points: tuple[_CurvePoint, ...]
    x_name: str = "α"
    chosen: float | None = None


@dataclass(frozen=True, slots=True)
class _Phase:
    sparsity: float
    candidates: Mapping[str, Scores]
    soup: Scores


@dataclass(frozen=True, slots=True)
class _Older:
    """The fields of a report of format 1 that later ones keep as figures."""

    curves: tuple[_Curve, ...] = ()
    steps: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    mixing: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    phases: tuple[_Phase, ...] = ()
    diagnosis: Mapping[str, Any] = field(default_factory=dict)


def report_of_format_1(data: Mapping[str, Any]) -> Report:
    """The report in `data`, as stockpot 0.1 wrote it.

    Raises:
        StockpotError: a field is missing or of another type; the message names the place.
    """
    kept = {item.name for item in fields(Report)} - {"figures"}
    report = parse(Report, {key: value for key, value in data.items() if key in kept})
    older = parse(_Older, data)
    notes = report.notes
    if older.diagnosis:
        notes += ("The figures of this diagnosis are drawn when stockpot diagnose is run again.",)
    return replace(report, figures=tuple(_figures(report, older)), notes=notes)


def _figures(report: Report, older: _Older) -> list[AnyFigure]:
    metric, chosen_on = report.metric, report.chosen_on
    average = (SHIFT_AVERAGE,) if report.shifts else ()
    found: list[AnyFigure | None] = [
        curve_chart(
            [(point.x, point.scores) for point in curve.points],
            name=f"curve-{number}",
            title=f"From the base to {curve.name}",
            x=Axis(name=curve.x_name),
            splits=(*report.tests[:1], *average, chosen_on),
            metric=metric,
            chosen=curve.chosen,
            chosen_on=chosen_on,
        )
        for number, curve in enumerate(older.curves, 1)
    ]
    for recipe, steps in older.steps.items():
        summary = SoupSummary(
            recipe=recipe,
            selected=(),
            coefficients={},
            steps=steps,
            chosen_on=chosen_on,
            scores={chosen_on: Score(0.0, 0, None, None, metric, chosen_on)},
        )
        found += [steps_chart(summary, {}), steps_table(summary, {})]
    found += [coefficients_heatmap(name, shares, {}) for name, shares in older.mixing.items()]
    if older.phases:
        split = (*report.tests, chosen_on)[0]
        dense = [m.scores.get(split) for m in report.models if m.name == "dense"]
        found.append(
            sparse_phases_chart(
                [
                    (
                        phase.sparsity,
                        {name: scores.get(split) for name, scores in phase.candidates.items()},
                        phase.soup.get(split),
                    )
                    for phase in older.phases
                ],
                split=split,
                metric=metric,
                dense=next((score.value for score in dense if score is not None), None),
            )
        )
    return [figure for figure in found if figure is not None]


def curve_chart(
    points: Sequence[tuple[float, Mapping[str, ScoreRecord | None]]],
    *,
    name: str,
    title: str,
    x: Axis,
    splits: Iterable[str],
    metric: str,
    chosen: float | None = None,
    chosen_on: str = "",
) -> LineChart | None:
    """Scores along a line, one line for each split, with 95 % bands; None without any score."""
    lines = []
    for split in splits:
        found = [(at, score) for at, scores in points if (score := scores.get(split)) is not None]
        if not found:
            continue
        bounds = [(s.low, s.high) for _, s in found if s.low is not None and s.high is not None]
        known = len(bounds) == len(found)
        lines.append(
            Line(
                name=split_name(split),
                x=tuple(at for at, _ in found),
                y=tuple(score.value for _, score in found),
                low=tuple(low for low, _ in bounds) if known else None,
                high=tuple(high for _, high in bounds) if known else None,
            )
        )
    if not lines:
        return None
    rules = () if chosen is None else (Rule(name=f"chosen: {chosen:g}", value=chosen),)
    explanation = "Bands are 95 % intervals."
    if chosen is not None and chosen_on:
        explanation += f" The {split_name(chosen_on)} split chose {chosen:g}."
    percent = is_share(metric)
    return LineChart(
        name=name,
        title=title,
        explanation=explanation,
        x=x,
        y=Axis(name="score (%)" if percent else metric, percent=percent),
        lines=tuple(lines),
        rules=rules,
    )


def sparse_phases_chart(
    phases: Sequence[tuple[float, Mapping[str, ScoreRecord | None], ScoreRecord | None]],
    *,
    split: str,
    metric: str,
    dense: float | None,
) -> ScatterChart | None:
    """Candidates and soup of each phase `(sparsity, candidates, soup)` on one split."""
    points: list[Point] = []
    soups: list[tuple[float, float]] = []
    for number, (sparsity, candidates, soup) in enumerate(phases, 1):
        points += [
            Point(name=f"{name}, phase {number}", x=sparsity, y=score.value, role="run",
                  group="candidate")
            for name, score in candidates.items() if score is not None
        ]  # fmt: skip
        if soup is not None:
            soups.append((sparsity, soup.value))
            points.append(
                Point(name=f"soup, phase {number}", x=sparsity, y=soup.value, role="soup",
                      group="soup", y_low=soup.low, y_high=soup.high)
            )  # fmt: skip
    if not soups:
        return None
    line = Line(
        name="soups",
        x=tuple(x for x, _ in soups),
        y=tuple(y for _, y in soups),
        role="soup",
        labels=tuple(f"soup, phase {number}" for number in range(1, len(soups) + 1)),
    )
    return ScatterChart(
        name="phases",
        title="Phases of the sparse soup",
        explanation=f"Scores on {split_name(split)} after each phase, by sparsity: the share of "
        "the prunable weights that are zero. Candidates share the zeros of their soup, whose line "
        "has its 95 % intervals.",
        x=Axis(name="sparsity (%)", percent=True),
        y=score_axis(split, metric),
        points=tuple(points),
        lines=(line,),
        rules=() if dense is None else (Rule(name="dense", value=dense, across="y"),),
    )
