"""The numbers and the pictures of a report as files of their own."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

from stockpot._figures import Chart, Table
from stockpot._types import StrPath
from stockpot.errors import OutputExistsError, ReportError
from stockpot.io.atomic import dump_json, refuse_existing, write_bytes
from stockpot.report.canvas import DARK, LIGHT, PAGE, css_variables, to_svg
from stockpot.report.charts import draw, numbers
from stockpot.report.model import (
    Report,
    files_table,
    models_table,
    report_figures,
    scores_table,
    shares_table,
)
from stockpot.report.tables import to_csv, to_rows

PICTURES = (".svg", ".png", ".pdf")


def to_data(report: Report) -> dict[str, Table]:
    """The numbers of every figure and table of the page, by the name of their files.

    The names are made here: no text of a record becomes the name of a file.
    """
    tables = {"scores": scores_table(report), "models": models_table(report)}
    shares, files = shares_table(report), files_table(report)
    tables |= {} if shares is None else {"coefficients": shares}
    tables |= {} if files is None else {"files": files}
    for i, figure in enumerate(report_figures(report), 1):
        name = f"figure-{i}" if figure in report.figures else figure.name
        tables[name] = figure if isinstance(figure, Table) else numbers(figure)
    return tables


def write_data(report: Report, folder: StrPath, *, force: bool = False) -> list[Path]:
    """Write `NAME.csv` and `NAME.json` of each table of `report` into `folder`; returns the paths.

    Raises:
        OutputExistsError: one of them exists and `force` is false, or is a link.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    contents: dict[Path, bytes] = {}
    for name, table in to_data(report).items():
        contents[Path(folder) / f"{name}.csv"] = to_csv(table).encode()
        contents[Path(folder) / f"{name}.json"] = dump_json(to_rows(table))
    for path in contents:
        if path.is_symlink():
            raise OutputExistsError(str(path), f"{path} is a link: choose another folder")
        if not force and os.path.lexists(path):
            raise OutputExistsError(str(path))
    for path, data in contents.items():
        write_bytes(path, data, force=force)
    return list(contents)


def to_picture(chart: Chart) -> str:
    """A chart as an SVG file of its own, which follows the reader's light or dark."""
    svg = to_svg(draw(chart, PAGE), prefix=chart.name, label=chart.title)
    style = (
        f"<style>svg {{ {css_variables(LIGHT)}; background: var(--paper); "
        "font-family: sans-serif }\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {css_variables(DARK)} }} }}</style>"
    )
    head, _, rest = svg.partition(">")
    return f'{head} width="600">{style}{rest}\n'


def check_picture(path: StrPath, *, force: bool) -> None:
    """Refuse a picture that could not be written; for before the work begins.

    Raises:
        ReportError: another ending.
        OutputExistsError: `path` exists and `force` is not given.
    """
    if Path(path).suffix not in PICTURES:
        raise ReportError(f"{path} does not say which kind of figure: end it in .svg, .png or .pdf")
    refuse_existing(path, force=force, folder=False)


def save_picture(chart: Chart, path: StrPath, *, force: bool = False) -> None:
    """Write a chart to `path`, whole or not at all: .svg, .png or .pdf.

    Equal charts give equal files.

    Raises:
        ReportError: another ending.
        OutputExistsError: `path` exists and `force` is not given.
    """
    check_picture(path, force=force)
    if Path(path).suffix == ".svg":
        write_bytes(path, to_picture(chart).encode(), force=force)
        return
    ending: Literal["png", "pdf"] = "png" if Path(path).suffix == ".png" else "pdf"
    buffer = io.BytesIO()
    draw(chart, LIGHT).figure.savefig(
        buffer,
        format=ending,
        dpi=144,
        facecolor=LIGHT.paper,
        metadata={"CreationDate": None} if ending == "pdf" else None,
    )
    write_bytes(path, buffer.getvalue(), force=force)
