"""One HTML page that needs nothing but itself: it opens from a mail attachment."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from stockpot._types import StrPath
from stockpot.errors import ReportError
from stockpot.io.atomic import refuse_existing, write_bytes
from stockpot.report.canvas import DARK, LIGHT
from stockpot.report.data import table_to_csv
from stockpot.report.diagnosis_drawing import draw_figure
from stockpot.report.diagnosis_info import get_diagnosis_infos
from stockpot.report.diagnosis_tables import figure_table
from stockpot.report.drawing import draw_curve, draw_scatter
from stockpot.report.info import Axes, get_alpha_curve_info, get_scatter_info, split_name
from stockpot.report.markdown import to_markdown
from stockpot.report.records import Report
from stockpot.report.soup_parts import soup_parts
from stockpot.report.souped import open_report, page_beside
from stockpot.report.svg import PAGE, css_variables, to_svg
from stockpot.report.tables import (
    Table,
    curve_table,
    files_table,
    headline_table,
    models_table,
    scatter_table,
    shares_table,
    steps_table,
)


class FigurePart(NamedTuple):
    """A figure with what stands around it; `id` names the file of its numbers."""

    id: str
    title: str
    svg: str
    caption: str
    table: Table


def _scatter_part(report: Report, axes: Axes) -> FigurePart | None:
    if not report.shifts:
        return None
    info = get_scatter_info(report, axes=axes)
    if len(info.points) < 2:
        return None
    against = f"{split_name(info.x_split)} against {split_name(info.y_split)}"
    label = f"Scatter of {len(info.points)} models, {against}. The table below holds its numbers."
    caption = (
        "Right is better on the test, up is better on shifted data. "
        "Crosses of thin lines are 95 % intervals of the named models."
    )
    if info.logit:
        caption += " Both axes are logit-scaled."
    svg = to_svg(draw_scatter(info, palette=PAGE), name="scatter", label=label)
    return FigurePart("scatter", "Accuracy and robustness", svg, caption, scatter_table(info))


def _curve_parts(report: Report) -> list[FigurePart]:
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
        parts.append(FigurePart(f"curve-{number + 1}", title, svg, caption, curve_table(info)))
    return parts


def _diagnosis_parts(report: Report) -> list[FigurePart]:
    if not report.diagnosis:
        return []
    return [
        FigurePart(
            info.id,
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


def _soup_parts(report: Report) -> list[FigurePart]:
    return [
        FigurePart(
            part.id,
            part.title,
            to_svg(
                part.drawing,
                name=part.id,
                label=f"{part.title}. The table below holds its numbers.",
            ),
            part.caption,
            part.table,
        )
        for part in soup_parts(report)
    ]


def page_figures(report: Report, axes: Axes = "auto") -> list[FigurePart]:
    """Every figure that `report` has numbers for, in the order of the page."""
    parts = (
        _scatter_part(report, axes),
        *_curve_parts(report),
        *_soup_parts(report),
        *_diagnosis_parts(report),
    )
    return [part for part in parts if part is not None]


def to_data(report: Report) -> dict[str, Table]:
    """The numbers of every figure and table of the page, by name, for `write_data`."""
    tables = {part.id: part.table for part in page_figures(report)}
    shares, files = shares_table(report), files_table(report)
    return {
        "scores": headline_table(report),
        "models": models_table(report),
        **({} if shares is None else {"coefficients": shares}),
        **({} if files is None else {"files": files}),
        **tables,
    }


def to_html(report: Report, *, axes: Axes = "auto") -> str:
    """The page as text. It contains its styles, figures and script, and asks nobody for anything.

    The same report gives the same text.

    Args:
        report: what to show.
        axes: of the scatter; see `get_scatter_info`.
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
    figures = page_figures(report, axes)
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
        csv={part.id: quote(table_to_csv(part.table)) for part in figures},
        files=files_table(report),
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
    )


def render(
    source: Report | StrPath,
    out: StrPath | None = None,
    *,
    force: bool = False,
    axes: Axes = "auto",
) -> Path:
    """Write the page of a record, or its Markdown card, whole or not at all; returns its path.

    The page is made from the record alone: it can be made again at any time, and shows what was
    measured then.

    Args:
        source: a `Report`, or anything that `open_report` opens: a folder with `report.json`, a
            soup with its record, the folder of a sweep.
        out: the page, or a card if it ends in `.md`; by default `report.html` in the folder, or
            `NAME.report.html` beside a file.
        force: overwrite an older page.
        axes: of the scatter: `"auto"`, `"linear"` or `"logit"`.

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
        report = open_report(source)
        path = page_beside(source) if out is None else Path(out)
    refuse_existing(path, force=force, folder=False)
    is_card = path.suffix.lower() == ".md"
    text = to_markdown(report) if is_card else to_html(report, axes=axes)
    write_bytes(path, text.encode(), force=force)
    return path
