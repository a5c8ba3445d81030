"""From a diagnosis to a record and its page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import __version__
from stockpot._types import JSON, StrPath
from stockpot.io.atomic import refuse_existing
from stockpot.report.diagnosis_info import short_names
from stockpot.report.page import render
from stockpot.report.records import PAGE_NAME, RECORD_NAME, ModelRecord, Report, ScoreRecord, save

if TYPE_CHECKING:
    from stockpot.diagnosis.result import Diagnosis


def make_report(diagnosis: Diagnosis, *, provenance: Mapping[str, str] | None = None) -> Report:
    """The record of a diagnosis: its verdict and scores as of any study, and all of its JSON."""
    told: dict[str, Any] = diagnosis.to_json()
    names = short_names([*diagnosis.models, *diagnosis.ingredients, diagnosis.base])
    models = [_model(name, names, told) for name in diagnosis.models]
    headline = [diagnosis.base, diagnosis.best, "uniform", "greedy", "ensemble"]
    splits = list(next(iter(told["robustness"]["models"].values()))["scores"])
    reported = tuple(s for s in splits if s not in (diagnosis.split, "shift_average"))
    return Report(
        title="Will these soup?",
        verdict=tuple(told["verdict"]["sentences"]),
        chosen_on=diagnosis.split,
        reported_on=reported,
        shifts=tuple(s for s in diagnosis.shifts if s in reported),
        headline=tuple(names[name] for name in headline if name in diagnosis.models),
        models=tuple(models),
        provenance={
            "stockpot": __version__,
            "Python": platform.python_version(),
            "evaluations": f"{diagnosis.spending.made} made, {diagnosis.spending.planned} planned",
            **(provenance or {}),
        },
        notes=diagnosis.notes,
        higher_is_better=diagnosis.higher_is_better,
        diagnosis=told,
    )


def _model(name: str, names: Mapping[str, str], told: Mapping[str, Any]) -> ModelRecord:
    row = told["robustness"]["models"][name]
    share = 1.0 / len(row["members"]) if row["members"] else 0.0
    hyperparameters: Mapping[str, JSON] = told["ingredients"]["hyperparameters"].get(name, {})
    return ModelRecord(
        name=names[name],
        kind=row["kind"],
        scores={s: None if v is None else ScoreRecord(**v) for s, v in row["scores"].items()},
        path=name if row["kind"] in ("run", "base") else None,
        hyperparameters=hyperparameters,
        coefficients={names[m]: share for m in row["members"]} if row["kind"] == "soup" else {},
    )


def write_diagnosis(
    diagnosis: Diagnosis,
    folder: StrPath,
    *,
    force: bool = False,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.json` and `report.html` into `folder`; returns the page.

    Raises:
        OutputExistsError: one of the two exists and `force` is false.
    """
    for name in (RECORD_NAME, PAGE_NAME):
        refuse_existing(Path(folder) / name, force=force, folder=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save(make_report(diagnosis, provenance=provenance), folder)
    return render(folder, force=force)
