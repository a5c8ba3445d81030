"""The report of a diagnosis."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot import __version__
from stockpot._types import StrPath
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.io.atomic import staged_folder
from stockpot.report.model import (
    PAGE_NAME,
    RECORD_NAME,
    Kind,
    ModelRecord,
    Report,
    SplitGain,
    save,
    scored,
)
from stockpot.report.page import refuse_output, render

if TYPE_CHECKING:
    from stockpot.diagnosis.result import Diagnosis


def diagnosis_report(
    diagnosis: Diagnosis, *, provenance: Mapping[str, str] | None = None
) -> Report:
    """The report of a diagnosis: verdict, scores, gains and figures."""
    names = diagnosis.names
    splits = next(iter(diagnosis.models.values())).scores
    reported = tuple(s for s in splits if s not in (diagnosis.split, SHIFT_AVERAGE))
    headline = [diagnosis.base, diagnosis.best, "uniform", "greedy", "ensemble"]
    # A greedy soup that kept one model is that model: of its gains there is nothing to see.
    best_soup = next(
        (
            n
            for n in ("greedy", "uniform")
            if any(g.value for g in diagnosis.gains.get(n, {}).values())
        ),
        None,
    )
    gains = {} if best_soup is None else diagnosis.gains[best_soup]
    return Report(
        title="Will these soup?",
        verdict=diagnosis.verdict.sentences,
        chosen_on=diagnosis.split,
        reported_on=reported,
        shifts=tuple(s for s in diagnosis.shifts if s in reported),
        headline=tuple(names[name] for name in headline if name in diagnosis.models),
        models=tuple(_model(name, diagnosis) for name in diagnosis.models),
        chosen=best_soup,
        gains=tuple(
            SplitGain(split, found.value, found.low, found.high, found.p_value)
            for split, found in gains.items()
        ),
        gains_over=names[diagnosis.best],
        figures=(*diagnosis.figures(), *diagnosis.tables()[1:]),  # the first has the scores
        provenance={
            "stockpot": __version__,
            "Python": platform.python_version(),
            # Not how many were made just now: a study that was killed goes on to the same page.
            "evaluations": f"{diagnosis.spending.planned}",
            **(provenance or {}),
        },
        notes=diagnosis.notes,
        higher_is_better=diagnosis.higher_is_better,
    )


_KINDS: Mapping[str, Kind] = {"base": "base", "run": "run", "soup": "soup", "ensemble": "ensemble"}


def _model(name: str, diagnosis: Diagnosis) -> ModelRecord:
    row, names = diagnosis.models[name], diagnosis.names
    share = 1.0 / len(row.members) if row.members else 0.0
    return ModelRecord(
        name=names[name],
        kind=_KINDS.get(row.kind, "run"),
        scores=scored(row.scores),
        path=name if row.kind in ("run", "base") else None,
        hyperparameters=diagnosis.hyperparameters.get(name, {}),
        coefficients={names[m]: share for m in row.members} if row.kind == "soup" else {},
    )


def write_diagnosis(
    diagnosis: Diagnosis,
    folder: StrPath,
    *,
    force: bool = False,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.json` and `report.html` into `folder`, both or none; returns the page.

    Raises:
        OutputExistsError: one of the two exists and `force` is false, or is not of this program.
    """
    names = (PAGE_NAME, RECORD_NAME)
    for name in names:
        refuse_output(Path(folder) / name, force=force)
    with staged_folder(folder, force=True, replaces=lambda name: name in names) as staged:
        save(diagnosis_report(diagnosis, provenance=provenance), staged.path)
        render(staged.path)
    return Path(folder) / PAGE_NAME
