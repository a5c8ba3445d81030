"""`stockpot report`."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit

__all__ = ["report"]


def report(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Folder with a report.json, such as the demo's output."),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="OUT", help="The page; default: DIR/report.html."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make one self-contained HTML page of what was found.

    The page needs nothing but itself: it opens from a mail attachment.

    \b
    stockpot report stockpot-demo --force
    stockpot report stockpot-demo -o page.html
    """
    from stockpot.report.page import render

    path = render(folder, output, force=force)
    emit({"report": str(path)}, str(path), as_json=json)
