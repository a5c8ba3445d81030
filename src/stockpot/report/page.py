"""One HTML page that needs nothing but itself: it opens from a mail attachment."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from stockpot._io import refuse_existing, write_bytes
from stockpot._types import StrPath
from stockpot.errors import ReportError
from stockpot.report.diagnosis_drawing import draw_figure
from stockpot.report.diagnosis_info import get_diagnosis_infos
from stockpot.report.diagnosis_tables import figure_table
from stockpot.report.drawing import DARK, LIGHT, draw_curve, draw_scatter
from stockpot.report.info import get_alpha_curve_info, get_scatter_info, split_name
from stockpot.report.records import Report, load
from stockpot.report.svg import PAGE, css_variables, to_svg
from stockpot.report.tables import (
    Table,
    curve_table,
    headline_table,
    models_table,
    scatter_table,
    shares_table,
    steps_table,
)

__all__ = ["PAGE_NAME", "render", "to_html"]

PAGE_NAME = "report.html"


class _FigurePart(NamedTuple):
    """A figure with what stands around it."""

    title: str
    svg: str
    caption: str
    table: Table


def _scatter_part(report: Report) -> _FigurePart | None:
    if not report.shifts:
        return None
    info = get_scatter_info(report)
    axes = f"{split_name(info.x_split)} against {split_name(info.y_split)}"
    label = f"Scatter of {len(info.points)} models, {axes}. The table below holds its numbers."
    caption = (
        "Right is better on the test, up is better on shifted data. "
        "Crosses of thin lines are 95 % intervals of the named models."
    )
    if info.logit:
        caption += " Both axes are logit-scaled."
    svg = to_svg(draw_scatter(info, palette=PAGE), name="scatter", label=label)
    return _FigurePart("Accuracy and robustness", svg, caption, scatter_table(info))


def _curve_parts(report: Report) -> list[_FigurePart]:
    parts = []
    for number, curve in enumerate(report.curves):
        info = get_alpha_curve_info(report, curve)
        label = (
            f"Scores of {len(info.lines)} splits from the base to {info.name} along {info.x_name}. "
            "The table below holds its numbers."
        )
        caption = "Bands are 95 % intervals."
        if info.chosen is not None:
            chooser = split_name(report.chosen_on)
            caption += f" The {chooser} split chose {info.x_name} = {info.chosen:.2f}."
        svg = to_svg(draw_curve(info, palette=PAGE), name=f"curve{number}", label=label)
        title = f"From the base to {info.name}"
        parts.append(_FigurePart(title, svg, caption, curve_table(info)))
    return parts


def _diagnosis_parts(report: Report) -> list[_FigurePart]:
    if not report.diagnosis:
        return []
    return [
        _FigurePart(
            info.title,
            to_svg(
                draw_figure(info, palette=PAGE),
                name=info.id,
                label=f"{info.title}. The table below holds the numbers.",
            ),
            info.caption,
            figure_table(info),
        )
        for info in get_diagnosis_infos(report.diagnosis)
    ]


def to_html(report: Report) -> str:
    """The page as text. It contains its styles, figures and script, and asks nobody for anything.

    The same report gives the same text.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stockpot.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = [s.metric for m in report.models for s in m.scores.values() if s is not None]
    metric = metrics[0] if metrics else "accuracy"
    parts = (_scatter_part(report), *_curve_parts(report), *_diagnosis_parts(report))
    figures = [part for part in parts if part is not None]
    return environment.get_template("page.html.jinja").render(
        report=report,
        metric=metric,
        unit="per cent" if metric == "accuracy" else metric,
        chosen_on=split_name(report.chosen_on),
        headline=headline_table(report),
        models=models_table(report),
        shares=shares_table(report),
        steps={name: steps_table(steps, metric) for name, steps in report.steps.items()},
        figures=figures,
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
    )


def render(source: Report | StrPath, out: StrPath | None = None, *, force: bool = False) -> Path:
    """Write the page of a record, whole or not at all; returns its path.

    The page is made from the record alone: it can be made again at any time, and shows what was
    measured then.

    Args:
        source: a `Report`, a folder that holds `report.json`, or that file.
        out: the page; by default `report.html` in the folder of the record.
        force: overwrite an older page.

    Raises:
        ReportError: the record cannot be read, or `source` is a `Report` and `out` was not given.
        OutputExistsError: the page exists and `force` is false.
    """
    if isinstance(source, Report):
        report = source
        if out is None:
            raise ReportError("a report that is not in a folder needs the path of its page: out=")
        path = Path(out)
    else:
        report = load(source)
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        path = folder / PAGE_NAME if out is None else Path(out)
    refuse_existing(path, force=force, folder=False)
    write_bytes(path, to_html(report).encode(), force=force)
    return path
