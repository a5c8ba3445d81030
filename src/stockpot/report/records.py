"""What a report is made from: a file `report.json`, written by the commands that measured.

The scores are those of the command line's `--json`: `{split: {value, low, high, n, metric}}` plus
`shift_average`; what was not computed is null. A page shows these numbers and computes none.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stockpot._types import JSON, StrPath
from stockpot.errors import ReportError
from stockpot.io.atomic import write_bytes

RECORD_NAME = "report.json"
PAGE_NAME = "report.html"
SHIFT_AVERAGE = "shift_average"
# Raised when a newer stockpot writes what an older one could not show.
_FORMAT = 1

_Kind = Literal["base", "run", "soup", "wise-ft", "ensemble"]


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One score; `low` and `high` bound its 95 % interval, `n` counts the examples.

    Values are fractions (0.97, not 97) for accuracies, and whatever the metric says otherwise.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    metric: str = "accuracy"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model of the study: a row of the tables and a point of the scatter.

    `kind` decides its mark; `base` is the common start, `run` an ingredient. `coefficients` maps
    the names of ingredients to their shares (those left out may be missing or 0).
    """

    name: str
    kind: _Kind
    scores: Mapping[str, ScoreRecord | None]
    path: str | None = None
    hyperparameters: Mapping[str, JSON] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The scores at one position of a curve."""

    x: float
    scores: Mapping[str, ScoreRecord | None]


@dataclass(frozen=True, slots=True)
class CurveRecord:
    """Scores along a line, such as WiSE-FT's α from the base (0) to a model (1).

    `chosen` is the position that the held-out split chose, None when nothing was chosen.
    """

    name: str
    points: tuple[CurvePoint, ...]
    x_name: str = "α"
    chosen: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One decision of a greedy or pruned soup, in the order in which they were taken.

    A candidate rejected early has no `score`, only `score_at_most`.
    """

    candidate: str
    accepted: bool
    score: float | None = None
    score_at_most: float | None = None
    p_value: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """One phase of a sparse soup: models at one sparsity (0..1), each by its name.

    `soup` is the average of the `candidates`.
    """

    sparsity: float
    candidates: Mapping[str, Mapping[str, ScoreRecord | None]]
    soup: Mapping[str, ScoreRecord | None]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one page shows, verdict first.

    `chosen_on` names the held-out split; `reported_on` the splits that had no part in any choice,
    in the order of the columns, with the in-distribution test first; `shifts` those of them that
    `shift_average` averages. `headline` names the models of the first table, in order. `steps`
    maps the name of a soup to its decisions. `provenance` is shown as given: versions, hardware,
    seed, wall time, number of examples. `diagnosis` is the JSON of `stockpot diagnose`, when that
    wrote the record. `mixing` has the coefficients of soups that mix each group of tensors by
    itself: soup → group → ingredient → share. `phases` are those of a sparse soup.
    """

    title: str
    verdict: tuple[str, ...]
    chosen_on: str
    reported_on: tuple[str, ...]
    shifts: tuple[str, ...]
    headline: tuple[str, ...]
    models: tuple[ModelRecord, ...]
    curves: tuple[CurveRecord, ...] = ()
    steps: Mapping[str, tuple[StepRecord, ...]] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    higher_is_better: bool = True
    diagnosis: Mapping[str, JSON] = field(default_factory=dict)
    mixing: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    phases: tuple[PhaseRecord, ...] = ()

    def __post_init__(self) -> None:
        known = [model.name for model in self.models]
        missing = [name for name in self.headline if name not in known]
        if missing:
            raise ReportError(f"the headline names models without scores: {', '.join(missing)}")
        if len(set(known)) != len(known):
            raise ReportError("two models of one report have the same name")
        outside = [name for name in self.shifts if name not in self.reported_on]
        if outside:
            raise ReportError(f"shifts that are not reported on: {', '.join(outside)}")

    def model(self, name: str) -> ModelRecord:
        """The model of this name; `ReportError` when there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise ReportError(f"the report has no model {name!r}")


def save(report: Report, folder: StrPath) -> Path:
    """Write `report.json` into `folder`, whole or not at all; returns its path."""
    path = Path(folder) / RECORD_NAME
    # Not sorted: the order of hyper-parameters and of the provenance is the reader's.
    fields = {"format": _FORMAT, **dataclasses.asdict(report)}
    write_bytes(path, json.dumps(fields, indent=1, allow_nan=False, ensure_ascii=False).encode())
    return path


def load(source: StrPath) -> Report:
    """Read a record: a folder that holds `report.json`, or the file itself.

    Raises:
        ReportError: there is none, it is not a record, or a newer stockpot wrote it.
    """
    path = Path(source)
    if path.is_dir():
        path /= RECORD_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"{source} holds no {RECORD_NAME}: give the folder that `stockpot demo -o` wrote"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{path} is not a record of stockpot: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ReportError(f"{path} is not a record of stockpot: it names no format")
    if data.pop("format") > _FORMAT:
        raise ReportError(f"{path} is from a newer stockpot: pip install --upgrade stockpot")
    try:
        return typing.cast("Report", _build(Report, data))
    except (TypeError, KeyError, ValueError) as error:
        raise ReportError(f"{path} is not a record of stockpot: {error}") from error


def _build(kind: Any, value: Any) -> Any:
    """`value`, as JSON gives it, as an instance of the annotation `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"expected the fields of {kind.__name__}, found {value!r:.40}")  # type: ignore[union-attr]
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {', '.join(unknown)}")  # type: ignore[union-attr]
        return kind(**{name: _build(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        structured = [a for a in args if dataclasses.is_dataclass(a)]
        return _build(structured[0], value) if structured else value
    if origin is tuple:
        return tuple(_build(args[0], item) for item in value)
    if origin is Mapping and args[1] is not JSON:
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {value!r:.40}")
        return {name: _build(args[1], item) for name, item in value.items()}
    return value
