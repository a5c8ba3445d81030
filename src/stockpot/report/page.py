"""One HTML page that needs nothing but itself: it opens from a mail attachment.

Everything that a record says reaches the page through the escaping of the template or of the writer
of SVG; ids are made here; styles and the script are the page's own, by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from stockpot import __version__
from stockpot._figures import Chart, Table
from stockpot._markdown import escape_markdown
from stockpot._types import StrPath
from stockpot.errors import OutputExistsError, ReportError
from stockpot.io.atomic import write_bytes
from stockpot.report.canvas import DARK, LIGHT, PAGE, css_variables, to_svg
from stockpot.report.charts import draw, numbers
from stockpot.report.from_results import NextStep, next_steps, open_report, page_beside
from stockpot.report.model import (
    Report,
    Scale,
    files_table,
    lead_chart,
    models_table,
    report_figures,
    scores_table,
    shares_table,
)
from stockpot.report.tables import TextRow, as_text, to_csv, to_markdown

_HYPHEN = re.compile(r"(?<=[ (])-(?=\d)")


class ShownTable(NamedTuple):
    """A table with the id that it has in the page."""

    id: str
    table: Table
    rows: list[TextRow]
    csv: str


class ShownChart(NamedTuple):
    """A chart as SVG, with the table of its numbers."""

    id: str
    chart: Chart
    svg: str
    numbers: ShownTable


def _show_table(table: Table, name: str, *, higher_is_better: bool | None = None) -> ShownTable:
    rows = as_text(table, higher_is_better=higher_is_better)
    return ShownTable(name, table, rows, quote(to_csv(table)))


def _show_chart(chart: Chart, name: str) -> ShownChart:
    label = f"{chart.title}. The table below the figure holds its numbers."
    svg = to_svg(draw(chart, PAGE), prefix=name, label=label)
    return ShownChart(name, chart, svg, _show_table(numbers(chart), f"{name}-numbers"))


def _with_minus(sentence: str) -> str:
    """What a terminal shows with a hyphen has the sign of its numbers, as in the tables."""
    return _HYPHEN.sub("−", sentence)


def to_html(report: Report, *, axes: Scale = "auto", next_steps: tuple[NextStep, ...] = ()) -> str:
    """The page as text. It contains its styles, figures and script, and asks nobody for anything.

    The same report gives the same text.

    Args:
        report: what to show.
        axes: of the scatter; see `stockpot.report.model.scatter`.
        next_steps: commands to go on with.
    """
    import jinja2
    from markupsafe import Markup

    report = replace(report, verdict=tuple(map(_with_minus, report.verdict)))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _style(), _resource("page.js")
    figures = [
        (figure, _show_table(figure, f"table-{i}"), None)
        if isinstance(figure, Table)
        else (figure, None, _show_chart(figure, f"figure-{i}"))
        for i, figure in enumerate(report_figures(report, axes=axes), 1)
    ]
    charts = [chart for _, _, chart in figures if chart is not None]
    shares, files = shares_table(report), files_table(report)
    leads = lead_chart(report, axes=axes) is not None
    return environment.get_template("page.html.jinja").render(
        report=report,
        version=__version__,
        lead=charts[0] if leads else None,
        charts=charts[1:] if leads else charts,
        tables=[table for _, table, _ in figures if table is not None],
        scores=_show_table(
            scores_table(report), "scores", higher_is_better=report.higher_is_better
        ),
        models=_show_table(models_table(report), "models"),
        shares=None if shares is None else _show_table(shares, "coefficients"),
        files=None if files is None else _show_table(files, "files"),
        next_steps=next_steps,
        policy=(
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),
        script=Markup(script),
        drawn={chart.id: Markup(chart.svg) for chart in charts},
    )


def _resource(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _style() -> str:
    light, dark = (
        f"{css_variables(LIGHT)}; --tint: #f4f6f8",
        f"{css_variables(DARK)}; --tint: #1d242a",
    )
    variables = (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
    return f"\n{variables}{_resource('page.css')}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_card(report: Report) -> str:
    """A Markdown card for a repository or a message; the numbers are those of the page."""
    scores, shares, files = scores_table(report), shares_table(report), files_table(report)
    better = report.higher_is_better
    parts = [
        f"# {escape_markdown(report.title)}",
        CARD_MARK,
        *map(escape_markdown, map(_with_minus, report.verdict)),
    ]
    parts += [to_markdown(scores, higher_is_better=better), escape_markdown(scores.explanation)]
    if shares is not None:
        parts += [f"## {shares.title}", to_markdown(shares)]
    parts += map(escape_markdown, report.notes)
    if report.provenance or files is not None or report.commands:
        parts.append("## Where this comes from")
    if report.provenance:
        lines = (
            f"- {escape_markdown(k)}: {escape_markdown(v)}" for k, v in report.provenance.items()
        )
        parts.append("\n".join(lines))
    if files is not None:
        parts.append(to_markdown(files))
    if report.commands:
        # Indented: no text can end such a block, whatever fence it holds.
        parts.append("\n".join("    " + " ".join(command.split()) for command in report.commands))
    return "\n\n".join(parts) + "\n"


CARD_MARK = "<!-- a card by stockpot report -->"
# Pages and cards of stockpot 0.1 are known by what all of them said.
_CARD_MARKS = (CARD_MARK.encode(), b"with 95 % intervals.")
_PAGE_MARKS = (b'<meta name="generator" content="stockpot', b"\xc2\xb7 stockpot</title>")


def refuse_output(path: Path, *, force: bool) -> None:
    """Raise unless a page or a card may be put at `path`.

    A link is never followed, and `force` replaces only a page, a card or a record of this module.

    Raises:
        OutputExistsError: with what stands in the way.
    """
    if path.is_symlink():
        raise OutputExistsError(
            str(path),
            f"{path} is a link, and a page is not written through one: remove it, or choose "
            "another output",
        )
    if not path.exists():
        return
    if not path.is_file():
        raise OutputExistsError(str(path), f"{path} exists and is no file: choose another output")
    if not force:
        raise OutputExistsError(str(path))
    if not _is_ours(path):
        raise OutputExistsError(
            str(path),
            f"{path} was not written by stockpot report, and is not replaced, not even with "
            "force: choose another output, or remove it yourself",
        )


def _is_ours(path: Path) -> bool:
    """Whether a file is a page, a card or the record of a report."""
    with path.open("rb") as file:
        start = file.read(4096)
    is_page = start.startswith(b"<!doctype html>") and any(mark in start for mark in _PAGE_MARKS)
    is_card = start.startswith(b"# ") and any(mark in start for mark in _CARD_MARKS)
    is_record = re.match(rb'\{\s*"format": [12],\s*"title":', start) is not None
    return is_page or is_card or is_record


def render(
    source: Report | StrPath,
    out: StrPath | None = None,
    *,
    force: bool = False,
    axes: Scale = "auto",
) -> Path:
    """Write the page of a record, or its Markdown card, whole or not at all; returns its path.

    The page is made from the record alone: it can be made again at any time, and shows what was
    measured then.

    Args:
        source: a `Report`, or anything that `open_report` opens: a folder with `report.json`, a
            soup with its record, the folder of a sweep.
        out: the page, or a card if it ends in `.md`; by default `report.html` in the folder, or
            `NAME.report.html` beside a file.
        force: overwrite an older page or card.
        axes: of the scatter: `"auto"`, `"linear"` or `"logit"`.

    Raises:
        ReportError: the record cannot be read, or `source` is a `Report` and `out` was not given,
            or `out` has another ending.
        OutputExistsError: the page exists and `force` is false, or it is a link, or no page.
    """
    if isinstance(source, Report):
        report, steps = source, tuple[NextStep, ...]()
        if out is None:
            raise ReportError("a report that is not in a folder needs the path of its page: out=")
        path = Path(out)
    else:
        report = open_report(source)
        steps = next_steps(source)
        path = page_beside(source) if out is None else Path(out)
    ending = path.suffix.lower()
    if ending not in (".html", ".htm", ".md"):
        raise ReportError(f"{path} does not say what to write: end it in .html or .md")
    refuse_output(path, force=force)
    text = to_card(report) if ending == ".md" else to_html(report, axes=axes, next_steps=steps)
    write_bytes(path, text.encode(), force=force)
    return path
