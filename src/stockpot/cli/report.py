"""`stockpot report`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit


def report(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="What a command wrote: the demo's folder, a sweep's folder, or a soup.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The page; a name in .md becomes a Markdown card. Default: report.html in DIR, "
            "or beside a soup.",
        ),
    ] = None,
    axes: Annotated[
        Literal["auto", "linear", "logit"], typer.Option("--axes", help="Of the scatter.")
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", help="Also write the numbers of each figure: CSV and JSON."
        ),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make one self-contained HTML page of what was found.

    The page needs nothing but itself: it opens from a mail attachment. It is made from the record
    that a command wrote, and nothing is scored again.

    \b
    stockpot report stockpot-demo --force
    stockpot report soup.safetensors -o page.html
    stockpot report runs/ -o sweep.md
    stockpot report stockpot-demo -o page.html --data numbers/
    """
    from stockpot.report.data import write_data
    from stockpot.report.page import render, to_data
    from stockpot.report.souped import open_report

    path = render(source, output, force=force, axes=axes)
    written = [] if data is None else write_data(to_data(open_report(source)), data, force=force)
    told = {"report": str(path), "data": [str(one) for one in written]}
    emit(told, "\n".join(map(str, [path, *written])), as_json=json)
