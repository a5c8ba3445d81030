"""What a page is made of: a verdict, the models with their scores, and figures.

`report.json` keeps it, so that a page can be made again at any time and shows what was measured
then. The scores are those of the command line's `--json`; a page shows numbers and computes none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stockpot._figures import (
    AnyFigure,
    Axis,
    Cell,
    Column,
    Estimate,
    IntervalChart,
    Line,
    LineChart,
    Point,
    Row,
    ScatterChart,
    Table,
)
from stockpot._types import StrPath
from stockpot.errors import ReportError
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.io.atomic import write_bytes
from stockpot.recipes.result import is_share

if TYPE_CHECKING:
    from stockpot.evaluate.task import Score

RECORD_NAME = "report.json"
PAGE_NAME = "report.html"
# Raised when a newer stockpot writes what an older one could not show.
FORMAT = 2

Kind = Literal["base", "run", "soup", "wise-ft", "ensemble"]
Scale = Literal["auto", "linear", "logit"]


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One score; `low` and `high` bound its 95 % interval, `n` counts the examples.

    Values are fractions (0.97, not 97) for accuracies, and whatever the metric says otherwise.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    metric: str = "accuracy"


Scores = Mapping[str, ScoreRecord | None]


def scored(
    scores: Mapping[str, Score] | Mapping[str, Score | None],
) -> dict[str, ScoreRecord | None]:
    """Scores of an evaluator (`stockpot.evaluate.Score`) as a report keeps them."""
    return {
        split: None if s is None else ScoreRecord(s.value, s.low, s.high, s.n, s.metric)
        for split, s in scores.items()
    }


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model of the study: a row of the tables and a point of the scatter.

    `kind` decides its mark; `base` is the common start, `run` an ingredient. `coefficients` maps
    the names of ingredients to their shares (those left out may be missing or 0).
    """

    name: str
    kind: Kind
    scores: Scores
    path: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SplitGain:
    """How much better one model is than another on data that chose neither.

    `difference` is paired, over the same examples; `low` and `high` bound its 95 % interval.
    """

    split: str
    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one page shows, verdict first.

    `chosen_on` names the held-out split; `reported_on` the splits that had no part in any choice,
    in the order of the columns, with the in-distribution test first; `shifts` those of them that
    `shift_average` averages. `headline` names the models of the first table, in order, and
    `chosen` the one that the verdict is about. `gains` are that model's over `gains_over`.
    `figures` show how it came about. `provenance` is shown as given: versions, hardware, seed, wall
    time, number of examples; `commands` make all of it again.
    """

    title: str
    verdict: tuple[str, ...]
    chosen_on: str
    reported_on: tuple[str, ...]
    shifts: tuple[str, ...]
    headline: tuple[str, ...]
    models: tuple[ModelRecord, ...]
    chosen: str | None = None
    gains: tuple[SplitGain, ...] = ()
    gains_over: str = ""
    figures: tuple[AnyFigure, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        known = [model.name for model in self.models]
        missing = [name for name in self.headline if name not in known]
        if missing:
            raise ReportError(f"the headline names models without scores: {', '.join(missing)}")
        if len(set(known)) != len(known):
            raise ReportError("two models of one report have the same name")
        outside = [name for name in self.shifts if name not in self.reported_on]
        if outside:
            raise ReportError(f"shifts that are not reported on: {', '.join(outside)}")

    @property
    def metric(self) -> str:
        """Of the scores; accuracy where there are none."""
        found = [s.metric for m in self.models for s in m.scores.values() if s is not None]
        return found[0] if found else "accuracy"

    @property
    def tests(self) -> tuple[str, ...]:
        """The splits that report and are no shifts."""
        return tuple(split for split in self.reported_on if split not in self.shifts)

    def model(self, name: str) -> ModelRecord:
        """The model of this name; `ReportError` when there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise ReportError(f"the report has no model {name!r}")

    def to_json(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return {
            "format": FORMAT,
            **dataclasses.asdict(dataclasses.replace(self, figures=())),
            "figures": [figure.to_json() for figure in self.figures],
        }


def save(report: Report, folder: StrPath, *, force: bool = True) -> Path:
    """Write `report.json` into `folder`, whole or not at all; returns its path."""
    path = Path(folder) / RECORD_NAME
    # Not sorted: the order of hyper-parameters and of the provenance is the reader's.
    text = json.dumps(report.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, text.encode(), force=force)
    return path


# The tables and the scatter that every report has


def split_name(split: str) -> str:
    """The name of a split for people.

    >>> split_name("shift_average")
    'shift average'
    """
    return split.replace("_", " ")


def score_axis(split: str, metric: str) -> Axis:
    """The axis of the scores on a split: `test (%)`, `test, nll`."""
    percent = is_share(metric)
    unit = " (%)" if percent else f", {metric}"
    return Axis(name=split_name(split) + unit, percent=percent)


def estimate(score: ScoreRecord | None) -> Estimate | None:
    """A score as a cell of a table."""
    if score is None:
        return None
    return Estimate(value=score.value, low=score.low, high=score.high)


def splits_of(report: Report) -> tuple[str, ...]:
    """The columns of the tables: what chose, the test, the shifts' average, each shift."""
    average = (SHIFT_AVERAGE,) if len(report.shifts) > 1 else ()
    return (report.chosen_on, *report.tests, *average, *report.shifts)


def _columns(report: Report, splits: tuple[str, ...]) -> tuple[Column, ...]:
    percent = is_share(report.metric)
    return tuple(Column(name=split_name(split), percent=percent) for split in splits)


def scores_table(report: Report) -> Table:
    """The headline models on every split."""
    splits = splits_of(report)
    rows = tuple(
        Row(
            name=model.name,
            role=model.kind,
            chosen=model.name == report.chosen,
            cells=tuple(estimate(model.scores.get(split)) for split in splits),
        )
        for model in map(report.model, report.headline)
    )
    unit = "per cent" if is_share(report.metric) else report.metric
    explanation = (
        f"Scores in {unit}, with 95 % intervals. The {split_name(report.chosen_on)} column chose; "
        "the others had no part in any choice. Bold: the best of the models that cost one forward "
        "pass."
    )
    return Table(
        name="scores",
        title="Scores",
        explanation=explanation,
        columns=_columns(report, splits),
        rows=rows,
    )


def best_cells(table: Table, *, higher_is_better: bool) -> Iterator[tuple[int, int]]:
    """Row and column of the best of each column of scores, ensembles left out."""
    pick = max if higher_is_better else min
    for j in range(len(table.columns)):
        found = [
            (cell.value, i)
            for i, row in enumerate(table.rows)
            if isinstance(cell := row.cells[j], Estimate) and row.role != "ensemble"
        ]
        if len(found) > 1:
            best = pick(value for value, _ in found)
            yield from ((i, j) for value, i in found if value == best)


def models_table(report: Report) -> Table:
    """Every model: scores first, then the hyper-parameters."""
    splits = tuple(split for split in splits_of(report) if split not in report.shifts)
    keys = list(dict.fromkeys(key for m in report.models for key in m.hyperparameters))
    rows = tuple(
        Row(
            name=model.name,
            role=model.kind,
            cells=(
                *(estimate(model.scores.get(split)) for split in splits),
                *(_plain(model.hyperparameters.get(key)) for key in keys),
            ),
        )
        for model in report.models
    )
    columns = (
        *_columns(report, splits),
        *(Column(name=key.replace("_", " ")) for key in keys),
    )
    return Table(
        name="models",
        title="All models",
        explanation="Every model of the study. A click on a column sorts by it.",
        columns=columns,
        rows=rows,
    )


def _plain(value: Any) -> Cell:
    return value if isinstance(value, str | bool | int | float | None) else json.dumps(value)


def shares_table(report: Report) -> Table | None:
    """What each soup consists of, one column per soup; None when no model says."""
    soups = [model for model in report.models if model.coefficients]
    if not soups:
        return None
    names = list(dict.fromkeys(name for soup in soups for name in soup.coefficients))
    order = {model.name: i for i, model in enumerate(report.models)}
    rows = tuple(
        Row(name=name, cells=tuple(soup.coefficients.get(name) or None for soup in soups))
        for name in sorted(names, key=lambda n: (order.get(n, len(order)), n))
    )
    return Table(
        name="coefficients",
        title="What each soup consists of",
        explanation="Mixing coefficients: the share of each ingredient.",
        columns=tuple(Column(name=soup.name) for soup in soups),
        rows=rows,
        first="ingredient",
    )


def files_table(report: Report) -> Table | None:
    """Where each model lies and the hash of its content; None when no model says."""
    rows = tuple(
        Row(name=model.name, role=model.kind, cells=(model.path, model.fingerprint))
        for model in report.models
        if model.path or model.fingerprint
    )
    if not rows:
        return None
    return Table(
        name="files",
        title="Files",
        explanation="Files, and the hash of what each of them holds, which does not depend on its "
        "format.",
        columns=(Column(name="path"), Column(name="fingerprint")),
        rows=rows,
    )


_GROUPS = {"base": "base", "run": "single run", "soup": "soup", "wise-ft": "WiSE-FT",
           "ensemble": "ensemble"}  # fmt: skip


def scatter(report: Report, *, axes: Scale = "auto") -> ScatterChart | None:
    """In-distribution score against the average over shifts, one mark per model.

    Args:
        report: with a test and shifts.
        axes: `"auto"` takes logit axes for fractions that reach beyond a half. On them a straight
            line is what models without robustness of their own follow (Taori et al. 2020,
            arXiv 2007.00644), and differences close to 1 do not vanish.

    Raises:
        ReportError: logit axes for scores that are no fractions.
    """
    if not report.shifts:
        return None
    split = (*report.tests, report.chosen_on)[0]
    points = _points(report, split)
    lines = _traces(report, split)
    values = [v for p in points for v in (p.x, p.y)] + [
        v for one in lines for v in (*one.x, *one.y)
    ]
    if len(points) < 2:
        return None
    fractions = all(0 <= v <= 1 for v in values)
    if axes == "logit" and not fractions:
        raise ReportError("logit axes are for scores between 0 and 1: take linear ones")
    logit = fractions and (axes == "logit" or (axes == "auto" and max(values) > 0.5))
    better = ("Right", "up") if report.higher_is_better else ("Left", "down")
    x, y = (score_axis(s, report.metric) for s in (split, SHIFT_AVERAGE))
    return ScatterChart(
        name="scatter",
        title="Accuracy and robustness",
        explanation=f"{better[0]} is better on {split_name(split)}, {better[1]} is better on "
        "shifted data. Crosses of thin lines are 95 % intervals of the named models."
        + (" Both axes are logit-scaled: steps near 100 % are as wide as their odds." * logit),
        x=dataclasses.replace(x, scale="logit") if logit else x,
        y=dataclasses.replace(y, scale="logit") if logit else y,
        points=points,
        lines=lines,
    )


def _points(report: Report, split: str) -> tuple[Point, ...]:
    """Models as points; those of one kind at one place (the best run has two names) become one."""
    points: dict[tuple[Any, ...], Point] = {}
    order = {"run": 0, "base": 1, "wise-ft": 2, "ensemble": 3, "soup": 4}
    for model in sorted(report.models, key=lambda model: order[model.kind]):
        a, b = model.scores.get(split), model.scores.get(SHIFT_AVERAGE)
        if a is None or b is None:
            continue
        named = model.name in report.headline
        key = (model.kind, a.value, b.value)
        old = points.get(key)
        if old is not None and not named:
            continue
        name = model.name if old is None else f"{old.name}, {model.name}"
        whiskers = (a.low, a.high, b.low, b.high) if named else (None,) * 4
        points[key] = Point(
            name=name,
            x=a.value,
            y=b.value,
            role=model.kind,
            group=_GROUPS[model.kind],
            labelled=named and _is_labelled(model, report),
            x_low=whiskers[0],
            x_high=whiskers[1],
            y_low=whiskers[2],
            y_high=whiskers[3],
        )
    return tuple(points.values())


def _is_labelled(model: ModelRecord, report: Report) -> bool:
    """Whether its name is written into the scatter, which has room for a few."""
    known = (report.chosen, "best-single", "uniform", "greedy", "ensemble")
    return len(report.headline) <= 7 or model.kind == "base" or model.name in known


def _traces(report: Report, split: str) -> tuple[Line, ...]:
    """The curves that have both a test and a shift average, as lines of the scatter."""
    found = []
    for figure in report.figures:
        if isinstance(figure, LineChart):
            lines = {split_name(line.name): line for line in figure.lines}
            a, b = lines.get(split_name(split)), lines.get(split_name(SHIFT_AVERAGE))
            if a is not None and b is not None and a.x == b.x:
                found.append((figure, a, b))
    traces = []
    for figure, a, b in found:
        # What differs comes first: a table on a phone shows the beginning.
        title = f", {figure.title}" if len(found) > 1 else ""
        labels = tuple(f"{figure.x.name} = {at:g}{title}" for at in a.x)
        traces.append(Line(name="WiSE-FT, all α", x=a.y, y=b.y, role="wise-ft", labels=labels))
    return tuple(traces)


def gains_chart(report: Report) -> IntervalChart | None:
    """The gains that the verdict is about, in points where scores are fractions."""
    if not report.gains:
        return None
    percent = is_share(report.metric)
    unit = "points" if percent else report.metric
    better = "right" if report.higher_is_better else "left"
    rows = tuple(
        (split_name(g.split), Estimate(value=g.difference, low=g.low, high=g.high))
        for g in report.gains
    )
    return IntervalChart(
        name="gains",
        title=f"Gain over {report.gains_over or 'the best single run'}",
        explanation=f"Paired differences with 95 % intervals: to the {better} of 0 is better. An "
        "interval that holds 0 is within noise.",
        x=Axis(name=f"difference ({unit})", percent=percent),
        rows=rows,
        reference=0.0,
    )


def lead_chart(report: Report, *, axes: Scale = "auto") -> IntervalChart | ScatterChart | None:
    """The one chart that shows the verdict: gains, else the scatter, else scores with intervals."""
    return gains_chart(report) or scatter(report, axes=axes) or _scores_chart(report)


def _scores_chart(report: Report) -> IntervalChart | None:
    split = (*report.tests, report.chosen_on)[0]
    rows = [
        (model.name, found)
        for model in map(report.model, report.headline)
        if (found := estimate(model.scores.get(split))) is not None
    ]
    if len(rows) < 2:
        return None
    return IntervalChart(
        name="scores-chart",
        title=f"Scores on {split_name(split)}",
        explanation="Lines are 95 % intervals.",
        x=score_axis(split, report.metric),
        rows=tuple(rows),
    )


def report_figures(report: Report, *, axes: Scale = "auto") -> list[AnyFigure]:
    """Every figure and further table of `report`: the chart that leads, the scatter, the others."""
    lead, cloud = lead_chart(report, axes=axes), scatter(report, axes=axes)
    found = [lead, None if lead == cloud else cloud, *report.figures]
    return [figure for figure in found if figure is not None]
