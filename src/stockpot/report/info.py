"""The numbers that each figure shows, apart from their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from stockpot.errors import ReportError
from stockpot.report.records import SHIFT_AVERAGE, CurveRecord, ModelRecord, Report, ScoreRecord

Axes = Literal["auto", "linear", "logit"]


class Point(NamedTuple):
    """One model in the scatter; `label` is None where only hovering names it."""

    name: str
    kind: str
    x: float
    y: float
    x_interval: tuple[float, float] | None
    y_interval: tuple[float, float] | None
    label: str | None


class Trace(NamedTuple):
    """A curve in the scatter: (α, x, y) of each of its points."""

    name: str
    points: tuple[tuple[float, float, float], ...]


class ScatterInfo(NamedTuple):
    """What the scatter shows. `logit` says that both axes hold fractions between 0 and 1."""

    x_split: str
    y_split: str
    points: tuple[Point, ...]
    traces: tuple[Trace, ...]
    logit: bool


class Line(NamedTuple):
    """One split along α: values and, where known, intervals."""

    split: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


class CurveInfo(NamedTuple):
    """What an α curve shows."""

    name: str
    x_name: str
    lines: tuple[Line, ...]
    chosen: float | None


def split_name(split: str) -> str:
    """The name of a split for people.

    >>> split_name("shift_average")
    'shift average'
    """
    return split.replace("_", " ")


def format_value(value: float, metric: str) -> str:
    """A score for people: per cent for accuracies, four digits for everything else.

    >>> format_value(0.97812, "accuracy"), format_value(0.123456, "nll")
    ('97.8', '0.1235')
    """
    return f"{100 * value:.1f}" if metric == "accuracy" else f"{value:.4g}"


def _interval(score: ScoreRecord) -> tuple[float, float] | None:
    return None if score.low is None or score.high is None else (score.low, score.high)


def _merge(models: Sequence[ModelRecord], headline: Sequence[str], x: str, y: str) -> list[Point]:
    """Models as points; those of one kind at one place (the best run has two names) become one."""
    points: list[Point] = []
    for model in models:
        a, b = model.scores.get(x), model.scores.get(y)
        if a is None or b is None:
            continue
        label = model.name if model.name in headline else None
        new = Point(model.name, model.kind, a.value, b.value, _interval(a), _interval(b), label)
        same = [i for i, p in enumerate(points) if (p.kind, p.x, p.y) == (new.kind, new.x, new.y)]
        if not same:
            points.append(new)
            continue
        old = points[same[0]]
        labels = [text for text in (old.label, label) if text is not None]
        points[same[0]] = new._replace(
            name=f"{old.name}, {new.name}", label=", ".join(labels) if labels else None
        )
    return points


def get_scatter_info(report: Report, *, axes: Axes = "auto") -> ScatterInfo:
    """Every model and every point of a curve that has both scores.

    Args:
        report: with a test and shifts.
        axes: `"auto"` takes logit axes for fractions that reach beyond a half.

    Raises:
        ReportError: there is no test or no shift; or logit axes for scores that are no fractions.
    """
    if not report.reported_on or not report.shifts:
        raise ReportError("a scatter needs a test split and at least one shift")
    x = next((s for s in report.reported_on if s not in report.shifts), report.chosen_on)
    points = _merge(report.models, report.headline, x, SHIFT_AVERAGE)
    traces = []
    for curve in report.curves:
        both = [(p.x, p.scores.get(x), p.scores.get(SHIFT_AVERAGE)) for p in curve.points]
        found = tuple((t, a.value, b.value) for t, a, b in both if a is not None and b is not None)
        if found:
            traces.append(Trace(curve.name, found))
    numbers = [v for p in points for v in (p.x, p.y)] + [
        v for trace in traces for _, *xy in trace.points for v in xy
    ]
    # On logit axes a straight line is what models without robustness of their own follow
    # (Taori et al. 2020, arXiv 2007.00644), and differences close to 1 do not vanish.
    fractions = bool(numbers) and all(0 <= v <= 1 for v in numbers)
    if axes == "logit" and not fractions:
        raise ReportError("logit axes are for scores between 0 and 1: take linear ones")
    logit = fractions and (axes == "logit" or (axes == "auto" and max(numbers) > 0.5))
    return ScatterInfo(x, SHIFT_AVERAGE, tuple(points), tuple(traces), logit)


def get_alpha_curve_info(report: Report, curve: CurveRecord) -> CurveInfo:
    """The in-distribution test, the shift average and the split that chose, along one curve."""
    test = [s for s in report.reported_on if s not in report.shifts][:1]
    lines = []
    for split in (*test, *((SHIFT_AVERAGE,) if report.shifts else ()), report.chosen_on):
        scored = [(p.x, p.scores.get(split)) for p in curve.points]
        found = [(x, score) for x, score in scored if score is not None]
        if not found:
            continue
        bounds = [_interval(score) for _, score in found]
        known = [b for b in bounds if b is not None]
        complete = len(known) == len(found)
        lines.append(
            Line(
                split,
                tuple(x for x, _ in found),
                tuple(score.value for _, score in found),
                tuple(b[0] for b in known) if complete else None,
                tuple(b[1] for b in known) if complete else None,
            )
        )
    return CurveInfo(curve.name, curve.x_name, tuple(lines), curve.chosen)
