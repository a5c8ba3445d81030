"""Reports of what commands recorded: the record beside a soup, and the runs of a sweep.

Every command that makes a soup writes what it decided and measured beside it. A page of it computes
nothing anew, so it shows what that command printed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from stockpot._figures import AnyFigure, LineChart, Table
from stockpot._records import parse, read_json, recorded_path
from stockpot._types import JSON, StrPath
from stockpot.errors import ReportError, StockpotError, VerificationError
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.formats.adapters.reading import how_to_load
from stockpot.formats.output import RECORD
from stockpot.formats.table import record_path
from stockpot.io.paths import short_name, short_names
from stockpot.recipes import RECIPES
from stockpot.recipes.card import how_to_load_folder
from stockpot.recipes.record import SoupRecord
from stockpot.recipes.result import ScoredModel, SoupSummary
from stockpot.recipes.selection import SelectionDetails
from stockpot.report.format1 import report_of_format_1
from stockpot.report.from_sparse import sparse_summary
from stockpot.report.from_zoo import zoo_summary
from stockpot.report.marks import shown, shown_interval
from stockpot.report.model import (
    FORMAT,
    PAGE_NAME,
    RECORD_NAME,
    Kind,
    ModelRecord,
    Report,
    ScoreRecord,
    Scores,
    SplitGain,
    score_axis,
    scored,
    split_name,
)


class NextStep(NamedTuple):
    """Something to do now: why, and the command that does it."""

    text: str
    command: str


@dataclass(frozen=True, slots=True)
class _Run:
    """What a page reads of the record of a run."""

    name: str = ""
    path: str = ""
    scores: Scores | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    environment: Mapping[str, Any] | None = None


def open_report(source: StrPath) -> Report:
    """The report of a folder, a soup, or a record.

    Args:
        source: a folder with `report.json`; a soup, file or folder, with the record that its
            command wrote; that record; or the folder of a sweep.

    Raises:
        ReportError: there is nothing to report on, or it is damaged.
    """
    path = Path(source)
    if path.name == RECORD_NAME or (path / RECORD_NAME).is_file():
        return load(path)
    record = path if path.name.endswith(RECORD) else record_path(path)
    for candidate in (record, path / RECORD):
        if candidate.is_file():
            name = candidate.name.removesuffix(f".{RECORD}")
            return soup_report(_read(candidate), name=path.name if name == RECORD else name)
    if path.is_dir() and any(path.glob("run-*.json")):
        return sweep_report([_read(one) for one in sorted(path.glob("run-*.json"))])
    if not path.exists():
        raise ReportError(f"there is nothing at {os.fspath(source)}")
    raise ReportError(
        f"{source} holds no {RECORD_NAME}, no soup with its record ({record.name}), and no runs of "
        "a sweep: give what a command of stockpot wrote"
    )


def load(source: StrPath) -> Report:
    """Read a record: a folder that holds `report.json`, or the file itself.

    Raises:
        ReportError: there is none, it is not a record, or a newer stockpot wrote it.
    """
    path = Path(source)
    if path.is_dir():
        path /= RECORD_NAME
    try:
        data = read_json(path, error=ReportError)
    except FileNotFoundError:
        if not Path(source).exists():
            raise ReportError(f"there is nothing at {os.fspath(source)}") from None
        raise ReportError(
            f"{source} holds no {RECORD_NAME}: give the folder that a command of stockpot wrote"
        ) from None
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise ReportError(f"{path} is not a record of stockpot: it names no format")
    if data["format"] > FORMAT:  # type: ignore[operator]
        raise ReportError(f"{path} is from a newer stockpot: pip install --upgrade stockpot")
    try:
        if data["format"] == 1:
            return report_of_format_1(data)
        return parse(Report, data)
    except StockpotError as problem:
        raise ReportError(f"{path} is not a record of stockpot: {problem}") from problem


def page_beside(source: StrPath) -> Path:
    """Where the page of `open_report(source)` goes: into a folder, beside a file.

    >>> str(page_beside("out/soup.safetensors")), str(page_beside("out/report.json"))
    ('out/soup.report.html', 'out/report.html')
    """
    path = Path(source)
    if path.is_dir():
        return path / PAGE_NAME
    if path.name in (RECORD_NAME, RECORD):
        return path.with_name(PAGE_NAME)
    stem = path.name.removesuffix(f".{RECORD}")
    return path.with_name(f"{Path(stem).stem}.report.html")


def next_steps(source: StrPath) -> tuple[NextStep, ...]:
    """What to do with what `open_report` opens, as commands to copy."""
    given = os.fspath(source)
    if re.search(r"[^\w\s./:@%+=,~-]|[\r\n]|\A-", given):
        return ()  # a name that should not be pasted into a terminal
    name = given.removesuffix(f".{RECORD}")
    path = Path(given)
    if path.is_dir() and any(path.glob("run-*.json")):
        return (
            NextStep(
                "Try every recipe on these runs, and keep the best",
                f"stockpot auto {shlex.quote(given)} --task TASK -o soup.safetensors",
            ),
        )
    if path.name == RECORD_NAME or (path / RECORD_NAME).is_file():
        folder = path.parent if path.name == RECORD_NAME else path
        soups = [folder / "soups" / f"{_chosen(folder)}.safetensors"]
        verify = [
            NextStep(
                f"Compute the {soup.stem} soup again and compare it bit for bit",
                f"stockpot verify {shlex.quote(str(soup))}",
            )
            for soup in soups
            if soup.is_file() and re.fullmatch(r"[\w.-]+", soup.name)
        ]
        own = NextStep(
            "Try every recipe on runs of your own",
            "stockpot auto RUNS/ --task TASK -o soup.safetensors",
        )
        return (*verify, own)
    if path.name == RECORD:
        name = str(path.parent)
    return (
        NextStep(
            "Compute the soup again and compare it bit for bit",
            f"stockpot verify {shlex.quote(name)}",
        ),
        NextStep(
            "Score it on your own data, beside other models",
            f"stockpot evaluate {shlex.quote(name)} OTHER --task TASK",
        ),
        NextStep(
            "In Python, load it into a network of yours",
            how_to_load(name)
            or how_to_load_folder(name)
            or f'import stockpot; stockpot.open("{name}").load_into(model)',
        ),
    )


def _chosen(folder: Path) -> str:
    """The model that the record of a page is about; nothing where its name is no file's."""
    chosen = _read(folder / RECORD_NAME).get("chosen")
    return chosen if isinstance(chosen, str) and re.fullmatch(r"[\w-]+", chosen) else ""


def _read(path: Path) -> Mapping[str, JSON]:
    data = read_json(path, error=ReportError)
    if not isinstance(data, dict):
        raise ReportError(f"{path} is not a record of stockpot: it is no JSON object")
    return data


# Soups


def soup_report(data: object, *, name: str = "soup") -> Report:
    """The report of one soup.

    Args:
        data: the record as it is kept beside the soup.
        name: of the soup's file.

    Raises:
        ReportError: the record is damaged, or nothing was scored.
    """
    try:
        record = SoupRecord.from_json(data, name=name)
        summary = record.summary
    except VerificationError as problem:
        raise ReportError(str(problem)) from problem
    if not any(score is not None for score in summary.scores.values()):
        raise ReportError(
            f"nothing was scored when {name} was made; give the command a task (--task)"
        )
    try:
        return _shown(record, summary, name)
    except (LookupError, TypeError, ValueError, ArithmeticError, StopIteration) as problem:
        # Each value is of its type, and what a recipe says of them together need not be true.
        raise ReportError(
            f"{name}: what the {summary.recipe} soup recorded does not fit together ({problem!r})"
        ) from problem


def _shown(record: SoupRecord, summary: SoupSummary, name: str) -> Report:
    """The report of a record whose values are of their types."""
    summary = replace(summary, roles=summary.roles or guess_roles(summary.scores))
    own: list[AnyFigure] = []
    if summary.recipe in _OF_TRAINING:
        summary, own = _OF_TRAINING[summary.recipe](summary, record.soup)
    names = _names(record, summary)
    chosen_on = summary.chosen_on or (*summary.splits("held-out"), *summary.roles)[0]
    rows = [_row(model, names) for model in summary.models()]
    headline = tuple(model.name for model in rows)
    aside, every = summary.not_averaged, summary.splits("shift")
    tests, shifts = summary.splits("test"), tuple(split for split in every if split not in aside)
    singles = _singles(record, summary, names, chosen_on)
    titles = {"zoo": "Zoo-Tuning", **{recipe.name: recipe.title for recipe in RECIPES}}
    # The first table has the scores, which a page shows in one of its own.
    shown_below = (*own, *summary.figures(names), *summary.tables(names)[1:])
    report = Report(
        title=f"{titles.get(summary.recipe, f'{summary.recipe.capitalize()} soup')}: {name}",
        verdict=(),
        chosen_on=chosen_on,
        reported_on=(*tests, *every),
        shifts=shifts,
        headline=headline,
        chosen=next((model.name for model in summary.models() if model.chosen), headline[0]),
        models=(*rows, *(model for model in singles if model.name not in headline)),
        figures=tuple(_plain_splits(figure, summary, chosen_on) for figure in shown_below),
        provenance=_provenance(record, summary),
        notes=(*summary.notes, *_left_out(aside, shifts)),
        higher_is_better=summary.higher_is_better,
    )
    report = replace(report, models=_with_file(report, name, record.output))
    gain = summary.gain
    if gain is not None:
        # Of the same model twice there is nothing to see.
        differences = [] if gain.is_same else [*gain.splits.values(), *gain.shifts.values()]
        report = replace(
            report,
            gains=tuple(
                SplitGain(one.split, one.value, one.low, one.high, one.p_value)
                for one in differences
            ),
            gains_over="" if gain.model is None else names.get(gain.model, short_name(gain.model)),
        )
    first = () if gain is None else (str(gain),)
    decided = summary.details.sentences(summary)
    sentences = tuple(
        text[:1].upper() + text[1:] if text[:1].isascii() else text  # α is no capital
        for text in (*first, *decided)
    )
    return replace(report, verdict=(*sentences, _scored_sentence(report)))


_OF_TRAINING = {"sparse": sparse_summary, "zoo": zoo_summary}
"""Soups of trainings, whose details are no recipe's."""


def _left_out(aside: Sequence[str], shifts: Sequence[str]) -> tuple[str, ...]:
    """That the average over shifts is not over all of them."""
    if not aside or not shifts:
        return ()
    return (
        f"The average over shifts leaves {', '.join(map(split_name, aside))} out "
        f"({len(shifts)} of {len(shifts) + len(aside)} shifts are in it).",
    )


def _plain_splits(figure: AnyFigure, summary: SoupSummary, chosen_on: str) -> AnyFigure:
    """A figure with the names of splits as people read them, and lines for the main ones alone."""
    splits = {*summary.scores, SHIFT_AVERAGE}
    if isinstance(figure, Table):
        columns = tuple(
            replace(one, name=split_name(one.name)) if one.name in splits else one
            for one in figure.columns
        )
        return replace(figure, columns=columns)
    if not isinstance(figure, LineChart) or not {line.name for line in figure.lines} <= splits:
        return figure
    main = {chosen_on, *summary.splits("test"), SHIFT_AVERAGE}
    lines = [line for line in figure.lines if len(figure.lines) <= 4 or line.name in main]
    return replace(figure, lines=tuple(replace(line, name=split_name(line.name)) for line in lines))


def _names(record: SoupRecord, summary: SoupSummary) -> dict[str, str]:
    """Short names of the ingredients, by their paths as given and as recorded, in full."""
    bases = [] if record.base is None else [record.base]
    names = short_names(one.path for one in (*record.ingredients, *bases))
    given = [*summary.selected, *(step.candidate for step in summary.steps)]
    for found in (summary.coefficients, *summary.coefficients.values(), _known_singles(summary)):
        given += found if isinstance(found, Mapping) else ()
    for path in given:
        if path not in names:
            names[path] = names.get(recorded_path(path), short_name(path))
    return names


def _known_singles(summary: SoupSummary) -> Mapping[str, float]:
    details = summary.details
    return details.singles if isinstance(details, SelectionDetails) else {}


def _row(model: ScoredModel, names: Mapping[str, str]) -> ModelRecord:
    """The soup, or what it is compared with."""
    shares = model.coefficients or {}
    facts: dict[str, Any] = {}
    if model.p_value is not None:
        facts["p against best-single"] = model.p_value
    if model.models != 1:
        facts["forward passes"] = model.models
    return ModelRecord(
        model.name,
        _KINDS.get(model.role, "soup"),
        scored(model.scores),
        hyperparameters=facts,
        coefficients={
            names.get(path, short_name(path)): float(share)
            for path, share in shares.items()
            if isinstance(share, int | float)
        },
        note=model.note,
    )


_KINDS: Mapping[str, Kind] = {
    "base": "base",
    "run": "run",
    "wise-ft": "wise-ft",
    "ensemble": "ensemble",
}


def _with_file(report: Report, name: str, fingerprint: str | None) -> tuple[ModelRecord, ...]:
    """The models, the chosen one with its file."""
    return tuple(
        replace(model, path=name, fingerprint=fingerprint) if model.name == report.chosen else model
        for model in report.models
    )


def _singles(
    record: SoupRecord, summary: SoupSummary, names: Mapping[str, str], chosen_on: str
) -> list[ModelRecord]:
    """The ingredients: what choosing knew of them, and what a sweep keeps beside them."""
    values = {names[path]: value for path, value in _known_singles(summary).items()}
    metric = next(score.metric for score in summary.scores.values() if score is not None)
    found = []
    for one in record.ingredients:
        name, run = names[one.path], _run_beside(one.path)
        scores: dict[str, ScoreRecord | None] = {} if run is None else dict(run.scores or {})
        if name in values and scores.get(chosen_on) is None:
            scores[chosen_on] = ScoreRecord(values[name], metric=metric)
        facts = {} if run is None else run.hyperparameters
        found.append(ModelRecord(name, "run", scores, one.path, facts, fingerprint=one.fingerprint))
    return found


def _provenance(record: SoupRecord, summary: SoupSummary) -> dict[str, str]:
    options = [
        f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}"
        for k, v in summary.options.items()
        if v not in (None, [])
    ]
    counts = ", ".join(
        f"{score.n} {split_name(split)}"
        for split, score in summary.scores.items()
        if score is not None and score.n and split != SHIFT_AVERAGE
    )
    base = record.base
    known = {
        "stockpot": record.stockpot,
        "recipe": ", ".join([summary.recipe, *options]),
        "fingerprint of the soup": record.output,
        "fingerprint of its mask": None if record.mask is None else record.mask.fingerprint,
        "base": None if base is None else f"{base.path}, {base.fingerprint}",
        "examples": counts,
    }
    return {name: text for name, text in known.items() if text}


def _scored_sentence(report: Report) -> str:
    """What the chosen model scores, and whether that data had a part in the choice."""
    model = report.model(report.chosen or report.headline[-1])
    average = (SHIFT_AVERAGE,) if report.shifts else ()
    splits = [s for s in (*report.tests, *average) if model.scores.get(s) is not None]
    found = [
        f"{score_in_words(score)} on {split_name(split)}"
        for split in splits or [report.chosen_on]
        if (score := model.scores.get(split)) is not None
    ]
    if not splits:
        return f"It scores {', '.join(found)}, which chose it; nothing independent was measured."
    return f"It scores {' and '.join(found)}, which had no part in the choice."


def score_in_words(score: ScoreRecord) -> str:
    """A score with its interval, for a sentence."""
    axis = score_axis("", score.metric)
    unit = " %" if axis.percent else ""
    text = f"{shown(score.value, axis)}{unit}"
    if score.low is None or score.high is None:
        return text
    return f"{text} ({shown_interval(score.low, score.high, axis)})"


def guess_roles(scores: Mapping[str, object]) -> dict[str, str]:
    """Roles of splits by their names, for records that do not say them."""
    shifted = SHIFT_AVERAGE in scores
    roles = {}
    for split in scores:
        if split.startswith(("held", "val", "dev")):
            roles[split] = "held-out"
        elif split != SHIFT_AVERAGE:
            roles[split] = "shift" if shifted and not split.startswith("test") else "test"
    return roles


def _run_beside(path: str) -> _Run | None:
    """The record that a sweep keeps beside the checkpoint of a run."""
    beside = Path(path).with_suffix(".json")
    if not beside.name.startswith("run-") or not beside.is_file():
        return None
    return parse(_Run, _read(beside), error=ReportError)


# Sweeps


def sweep_report(data: Sequence[Mapping[str, Any]]) -> Report:
    """The report of a sweep, from the records of its runs.

    Raises:
        ReportError: no run was scored, or a record is damaged.
    """
    try:
        runs = [parse(_Run, one) for one in data]
    except StockpotError as problem:
        raise ReportError(f"the record of a run is damaged: {problem}") from problem
    done = [(run, run.scores) for run in runs if run.scores]
    if not done:
        raise ReportError("no run of the sweep was scored; finish it, or give it a task")
    roles = guess_roles(done[0][1])
    by_role = {
        role: tuple(split for split, found in roles.items() if found == role)
        for role in ("held-out", "test", "shift")
    }
    chosen_on = (by_role["held-out"] or tuple(roles))[0]
    models = tuple(
        ModelRecord(
            run.name,
            "run",
            scores,
            run.path,
            run.hyperparameters,
            fingerprint=run.fingerprint,
        )
        for run, scores in done
    )
    ranked = sorted(
        ((score, m) for m in models if (score := m.scores.get(chosen_on)) is not None),
        key=lambda pair: -pair[0].value,
    )
    failed = len(runs) - len(done)
    verdict = [
        f"{len(done)} runs were fine-tuned from one base"
        + (f"; {failed} failed or were not scored." if failed else ".")
    ]
    if ranked:
        (best, first), (worst, last) = ranked[0], ranked[-1]
        verdict.append(
            f"On {split_name(chosen_on)} they range from {score_in_words(worst)} ({last.name}) to "
            f"{score_in_words(best)} ({first.name})."
        )
    return Report(
        title="Sweep",
        verdict=tuple(verdict),
        chosen_on=chosen_on,
        reported_on=(*by_role["test"], *by_role["shift"]),
        shifts=by_role["shift"],
        headline=tuple(model.name for _, model in ranked[:5]),
        models=models,
        provenance={k: str(v) for k, v in (done[0][0].environment or {}).items()},
        notes=("The table of scores has the five best runs on the split that chooses.",)
        if len(ranked) > 5
        else (),
    )
