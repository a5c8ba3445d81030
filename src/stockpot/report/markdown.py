"""The report as a Markdown card: verdict, table of scores, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.report.info import split_name
from stockpot.report.records import Report
from stockpot.report.tables import Table, files_table, headline_table, shares_table


def to_markdown(report: Report) -> str:
    """A card for a repository or a message; the numbers are those of the page."""
    metrics = [s.metric for m in report.models for s in m.scores.values() if s is not None]
    metric = metrics[0] if metrics else "accuracy"
    unit = "per cent" if metric == "accuracy" else metric
    parts = [f"# {_plain(report.title)}", *map(_plain, report.verdict)]
    parts += [
        _table(headline_table(report), "model"),
        f"Scores in {unit} with 95 % intervals. {_sentence(split_name(report.chosen_on))} chose; "
        "the others had no part in any choice. Bold: the best of the models that cost one forward "
        "pass.",
    ]
    shares, files = shares_table(report), files_table(report)
    if shares is not None:
        parts += ["## What each soup consists of", _table(shares, "ingredient")]
    parts += [_plain(note) for note in report.notes]
    if report.provenance or files is not None or report.commands:
        parts.append("## Where this comes from")
    if report.provenance:
        parts.append("\n".join(f"- {_plain(k)}: {_plain(v)}" for k, v in report.provenance.items()))
    if files is not None:
        parts.append(_table(files, "model"))
    if report.commands:
        parts += ["\n".join(["```", *report.commands, "```"])]
    return "\n\n".join(parts) + "\n"


def _table(table: Table, first: str) -> str:
    lines = [_line([first, *table.columns]), _line(["---", *("---:" for _ in table.columns)])]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text)
            cells.append(f"{text} ({_plain(cell.interval)})" if cell.interval else text)
        lines.append(_line([_plain(row.name), *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` with what Markdown would read as markup made plain.

    >>> _plain("run_01|*<b>")
    'run\\\\_01\\\\|\\\\*&lt;b>'
    """
    for character in "\\`*_|[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;").replace("\n", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
