"""The report of WiSE-FT curves: from one base to each of several models that were tuned from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stockpot import __version__
from stockpot.errors import ReportError
from stockpot.evaluate.compare import SHIFT_AVERAGE, Difference
from stockpot.io.paths import short_names
from stockpot.recipes.interpolation_details import WiseFTDetails
from stockpot.recipes.reading import read_summary
from stockpot.recipes.result import SoupSummary, is_share
from stockpot.report.model import ModelRecord, Report, scored, split_name


def curves_report(
    soups: Mapping[str, Mapping[str, Any]], *, base: str, roles: Mapping[str, str]
) -> Report:
    """One page for the curves of one base: each is a line of the scatter and a figure of its own.

    Args:
        soups: path of the tuned model → `Soup.to_json()` of its WiSE-FT soup, with a curve.
        base: path of the base.
        roles: split → `"held-out"`, `"test"` or `"shift"`, in the task's order.

    Raises:
        ReportError: a soup has no curve.
    """
    summaries = {path: read_summary(one) for path, one in soups.items()}
    curves = {path: _curve(path, summary) for path, summary in summaries.items()}
    names = short_names([*curves, base])
    first = next(iter(summaries.values()))
    held_out, tests, shifts = (
        tuple(split for split, found in roles.items() if found == role)
        for role in ("held-out", "test", "shift")
    )
    start = next(iter(curves.values())).at(0.0)
    models = [ModelRecord("base", "base", scored(start), base)]
    for path, curve in curves.items():
        models += _models(names[path], path, curve)
    metric = next(score.metric for score in start.values())
    return Report(
        title="From the base to what was tuned from it",
        verdict=tuple(
            text for path, curve in curves.items() for text in _verdict(names[path], curve, metric)
        ),
        chosen_on=first.chosen_on or (*held_out, *roles)[0],
        reported_on=(*tests, *shifts),
        shifts=shifts,
        headline=tuple(model.name for model in models),
        models=tuple(models),
        figures=tuple(
            replace(figure, title=f"From the base to {names[path]}")
            for path, curve in curves.items()
            for figure in curve.figures(names)
        ),
        provenance={"stockpot": __version__},
        notes=tuple(dict.fromkeys(note for one in summaries.values() for note in one.notes)),
        higher_is_better=first.higher_is_better,
    )


def _curve(path: str, summary: SoupSummary) -> WiseFTDetails:
    details = summary.details
    if not isinstance(details, WiseFTDetails) or not details.curve:
        raise ReportError(f"the soup of {path} has no curve to show")
    return details


def _models(name: str, path: str, curve: WiseFTDetails) -> Iterator[ModelRecord]:
    alpha = curve.alpha
    yield ModelRecord(name, "run", scored(curve.at(1.0)), path)
    chosen = scored(curve.at(alpha))
    yield ModelRecord(f"{name}, α = {alpha:g}", "wise-ft", chosen, note=curve.rule)
    if alpha != 0.5 and curve.at(0.5):
        yield ModelRecord(f"{name}, α = 0.5", "wise-ft", scored(curve.at(0.5)))
    for point in curve.ensemble:
        if point.alpha == 0.5:
            yield ModelRecord(f"{name}, ensemble", "ensemble", scored(point.scores))


def _verdict(name: str, curve: WiseFTDetails, metric: str) -> Iterator[str]:
    """What the chosen point gains over either end, with intervals, in words."""
    yield f"{name}: α = {curve.alpha:g} ({curve.rule})."
    for end, gains in curve.gains.items():
        if curve.alpha == {"base": 0, "tuned": 1}.get(end):
            continue
        test = next((s for s in ("test", *curve.best) if s in gains), SHIFT_AVERAGE)
        parts = [
            _in_words(split, gains[split], metric)
            for split in dict.fromkeys((test, SHIFT_AVERAGE))
            if split in gains
        ]
        if parts:
            yield f"Against the {end} model: {'; '.join(parts)}."


def _in_words(split: str, gain: Difference, metric: str) -> str:
    texts = [f"{100 * n:+.1f}" if is_share(metric) else f"{n:+.4g}" for n in gain.numbers]
    interval = f" [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ""
    noise = ", within noise" if gain.within_noise else ""
    return f"{split_name(split)} {texts[0]}{interval}{noise}".replace("-", "−")
