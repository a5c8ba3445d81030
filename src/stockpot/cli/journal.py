"""`stockpot journal list` and `stockpot journal clear`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stockpot._types import format_bytes
from stockpot.cli import _options as options
from stockpot.cli._render import emit, table

if TYPE_CHECKING:
    from stockpot.evaluate.journal import Journal


def journal_list(cache: options.Cache = None, json: options.Json = False) -> None:
    """List what has been scored and is remembered.

    \b
    stockpot journal list
    stockpot journal list --cache DIR --json
    """
    found = _journal(cache)
    entries = [] if found is None else found.entries()
    rows = [
        [
            entry.label or entry.key.model[:12],
            entry.key.metric,
            str(entry.n),
            format_bytes(entry.n_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created)),
        ]
        for entry in entries
    ]
    data = {
        "entries": [
            {
                **asdict(entry.key),
                "label": entry.label,
                "n": entry.n,
                "bytes": entry.n_bytes,
                "created": entry.created,
            }
            for entry in entries
        ]
    }
    emit(data, table(["what", "metric", "examples", "size", "made"], rows), as_json=json)


def journal_clear(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FINGERPRINT", help="Only results of these weights."),
    ] = None,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Forget what has been scored.

    It is computed again when it is needed.

    \b
    stockpot journal clear
    stockpot journal clear --model 0f3c…
    """
    found = _journal(cache)
    n = 0 if found is None else found.clear(model=model)
    emit({"cleared": n}, f"{n} entries forgotten", as_json=json)


def _journal(cache: str | None) -> Journal | None:
    """The journal of a cache folder; None where nothing was ever scored."""
    from stockpot.evaluate.evaluator import open_journal
    from stockpot.io.paths import cache_dir

    folder = cache_dir() if cache is None else Path(cache)
    return open_journal(folder) if folder.is_dir() else None
