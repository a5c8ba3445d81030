"""The tables of the page: what is shown, and what each cell sorts by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from stockpot._types import JSON
from stockpot.report.info import CurveInfo, ScatterInfo, format_value, split_name
from stockpot.report.records import SHIFT_AVERAGE, ModelRecord, Report, ScoreRecord, StepRecord


class Cell(NamedTuple):
    """One cell of a table: what is shown, what it sorts by, and the interval below it."""

    text: str
    sort: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """One model of a table."""

    name: str
    kind: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """Columns and rows; the first column, the model's name, is not among the columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def splits_of(report: Report) -> tuple[str, ...]:
    """The columns of the tables: what chose, the test, the shifts' average, each shift."""
    tests = tuple(s for s in report.reported_on if s not in report.shifts)
    average = (SHIFT_AVERAGE,) if report.shifts else ()
    return (report.chosen_on, *tests, *average, *report.shifts)


def _score_cell(score: ScoreRecord | None, *, best: bool = False) -> Cell:
    if score is None:
        return Cell("–", "")
    interval = ""
    if score.low is not None and score.high is not None:
        low, high = (format_value(v, score.metric) for v in (score.low, score.high))
        interval = f"{low}–{high}"
    return Cell(format_value(score.value, score.metric), repr(score.value), interval, best)


def _best(models: Iterable[ModelRecord], split: str, *, higher: bool) -> float | None:
    """The best score among the models that cost one forward pass."""
    found = [
        score.value
        for model in models
        if model.kind != "ensemble" and (score := model.scores.get(split)) is not None
    ]
    if not found:
        return None
    return max(found) if higher else min(found)


def headline_table(report: Report) -> Table:
    """The headline models on every split; the best of each column that costs one pass is marked."""
    splits = splits_of(report)
    models = [report.model(name) for name in report.headline]
    best = {split: _best(models, split, higher=report.higher_is_better) for split in splits}
    rows = []
    for model in models:
        cells = []
        for split in splits:
            score = model.scores.get(split)
            is_best = score is not None and score.value == best[split] and model.kind != "ensemble"
            cells.append(_score_cell(score, best=is_best))
        rows.append(Row(model.name, model.kind, tuple(cells)))
    return Table(tuple(map(split_name, splits)), tuple(rows))


def plain_cell(value: JSON) -> Cell:
    """A number with four digits, text as it is, a dash for nothing."""
    if value is None:
        return Cell("–", "")
    if isinstance(value, float):
        return Cell(f"{value:.4g}", repr(value))
    return Cell(str(value), str(value))


def models_table(report: Report) -> Table:
    """Every model that is a file: scores first, then the hyper-parameters."""
    splits = splits_of(report)
    splits = splits[: len(splits) - len(report.shifts)]
    keys = list(dict.fromkeys(key for m in report.models for key in m.hyperparameters))
    rows = [
        Row(
            model.name,
            model.kind,
            (
                *(_score_cell(model.scores.get(split)) for split in splits),
                *(plain_cell(model.hyperparameters.get(key)) for key in keys),
            ),
        )
        for model in report.models
    ]
    names = (*map(split_name, splits), *(key.replace("_", " ") for key in keys))
    return Table(names, tuple(rows))


def shares_table(report: Report) -> Table | None:
    """What each soup consists of, one column per soup; None when no model says."""
    soups = [model for model in report.models if model.coefficients]
    if not soups:
        return None
    names = list(dict.fromkeys(name for soup in soups for name in soup.coefficients))
    order = {model.name: i for i, model in enumerate(report.models)}
    rows = []
    for name in sorted(names, key=lambda n: (order.get(n, len(order)), n)):
        cells = []
        for soup in soups:
            share = soup.coefficients.get(name, 0.0)
            cells.append(
                Cell("–" if share == 0 else f"{share:.3f}".rstrip("0").rstrip("."), repr(share))
            )
        rows.append(Row(name, "", tuple(cells)))
    return Table(tuple(soup.name for soup in soups), tuple(rows))


def files_table(report: Report) -> Table | None:
    """Where each model lies and the hash of its content; None when no model says."""
    rows = [
        Row(
            model.name, model.kind,
            tuple(Cell(text or "–", text or "") for text in (model.path, model.fingerprint)),
        )
        for model in report.models
        if model.path or model.fingerprint
    ]  # fmt: skip
    return Table(("path", "fingerprint"), tuple(rows)) if rows else None


def steps_table(steps: Iterable[StepRecord], metric: str) -> Table:
    """The decisions of one soup."""
    rows = []
    for number, step in enumerate(steps, 1):
        if step.score is not None:
            score = Cell(format_value(step.score, metric), repr(step.score))
        elif step.score_at_most is not None:
            at_most = format_value(step.score_at_most, metric)
            score = Cell(f"at most {at_most}", repr(step.score_at_most))
        else:
            score = Cell("–", "")
        p_value = Cell("–", "") if step.p_value is None else plain_cell(step.p_value)
        decision = Cell("accepted" if step.accepted else "rejected", str(int(step.accepted)))
        reason = Cell(step.reason, step.reason)
        rows.append(
            Row(
                step.candidate,
                "",
                (Cell(str(number), str(number)), decision, score, p_value, reason),
            )
        )
    return Table(("step", "decision", "held-out score", "p", "remark"), tuple(rows))


def scatter_table(info: ScatterInfo) -> Table:
    """The numbers of a scatter, for those who cannot see it."""
    rows = [Row(p.name, p.kind, (plain_cell(p.x), plain_cell(p.y))) for p in info.points]
    for trace in info.traces:
        rows += [
            Row(f"{trace.name}, α = {alpha:.2f}", "wise-ft", (plain_cell(x), plain_cell(y)))
            for alpha, x, y in trace.points
        ]
    return Table((split_name(info.x_split), split_name(info.y_split)), tuple(rows))


def curve_table(info: CurveInfo) -> Table:
    """The numbers of a curve, for those who cannot see it."""
    positions = sorted({x for line in info.lines for x in line.x})
    rows = []
    for position in positions:
        values = [dict(zip(line.x, line.y, strict=True)).get(position) for line in info.lines]
        rows.append(Row(f"{position:.2f}", "", tuple(plain_cell(value) for value in values)))
    return Table(tuple(split_name(line.split) for line in info.lines), tuple(rows))
