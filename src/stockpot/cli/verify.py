"""`stockpot verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit


def verify(
    soup: Annotated[
        str,
        typer.Argument(metavar="SOUP", help="A checkpoint that stockpot wrote, with its record."),
    ],
    search: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="DIR", help="Where ingredients that moved may be."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Rebuild a soup from its record and compare it bit for bit.

    A difference is exit code 1. Ingredients that were moved or renamed are found by their
    fingerprints.

    \b
    stockpot verify soup.safetensors
    stockpot verify soup/ --search /archive/runs
    """
    from stockpot.recipes.record import verify as rebuild_and_compare

    differences = rebuild_and_compare(soup, search=search or [])
    lines = [f"{soup} differs from its record:", *(f"  {line}" for line in differences)]
    text = "\n".join(lines) if differences else f"{soup} is what its record says, bit for bit"
    emit({"verified": not differences, "differences": differences}, text, as_json=json)
    if differences:
        raise typer.Exit(1)
