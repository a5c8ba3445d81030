"""The numbers of the figures that show how one soup was made: its path, its shares, its phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stockpot.errors import ReportError
from stockpot.io.paths import natural_key
from stockpot.report.records import Report, ScoreRecord


class PathPoint(NamedTuple):
    """One decision. `value` is a bound (`at_most`) where the candidate lost before all was seen."""

    step: int
    candidate: str
    value: float
    at_most: bool
    accepted: bool
    p_value: float | None


class PathInfo(NamedTuple):
    """The decisions of a soup in order; `current` is its score after each step that has one."""

    name: str
    split: str
    points: tuple[PathPoint, ...]
    current: tuple[tuple[int, float], ...]
    metric: str


class HeatInfo(NamedTuple):
    """Coefficients of one soup: `values[group][ingredient]`, groups as the model has its layers."""

    groups: tuple[str, ...]
    ingredients: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def is_signed(self) -> bool:
        """Whether a coefficient is negative."""
        return any(value < 0 for row in self.values for value in row)

    @property
    def largest(self) -> float:
        """The largest size of a coefficient."""
        return max(abs(value) for row in self.values for value in row)


class PhasePoint(NamedTuple):
    """A model of a sparse soup: its phase's sparsity, 0..1, and its score."""

    name: str
    sparsity: float
    value: float
    interval: tuple[float, float] | None


class PhaseInfo(NamedTuple):
    """Scores on `split` by sparsity; `dense` is that of the model before pruning, if known."""

    split: str
    candidates: tuple[PhasePoint, ...]
    soups: tuple[PhasePoint, ...]
    dense: float | None
    metric: str


def get_path_info(report: Report, name: str) -> PathInfo:
    """The decisions of the soup `name` that have a score or a bound.

    Raises:
        ReportError: the report has no decisions of it.
    """
    if name not in report.steps:
        raise ReportError(f"the report has no decisions of {name!r}")
    points, current = [], []
    for number, step in enumerate(report.steps[name], 1):
        value = step.score if step.score is not None else step.score_at_most
        if value is None:
            continue
        at_most = step.score is None
        points.append(
            PathPoint(number, step.candidate, value, at_most, step.accepted, step.p_value)
        )
        if step.accepted and not at_most:
            current.append((number, value))
    return PathInfo(name, report.chosen_on, tuple(points), tuple(current), _metric(report))


def get_heat_info(report: Report, name: str) -> HeatInfo:
    """The coefficients of the soup `name` by group.

    Raises:
        ReportError: the report has none of it.
    """
    if name not in report.mixing:
        raise ReportError(f"the report has no coefficients by group of {name!r}")
    told = report.mixing[name]
    groups: Mapping[str, Mapping[str, float]] = {g: told[g] for g in sorted(told, key=natural_key)}
    ingredients = tuple(dict.fromkeys(one for shares in groups.values() for one in shares))
    values = tuple(tuple(s.get(one, 0.0) for one in ingredients) for s in groups.values())
    return HeatInfo(tuple(groups), ingredients, values)


def get_phase_info(report: Report) -> PhaseInfo:
    """Candidates and soups of every phase, on the test, or where there is none on what chose.

    Raises:
        ReportError: the report has no phases, or none of their models was scored.
    """
    tests = [split for split in report.reported_on if split not in report.shifts]
    split = (*tests, report.chosen_on)[0]
    candidates, soups = [], []
    for number, phase in enumerate(report.phases, 1):
        for name, scores in phase.candidates.items():
            candidates += _point(f"{name}, phase {number}", phase.sparsity, scores.get(split))
        soups += _point(f"soup, phase {number}", phase.sparsity, phase.soup.get(split))
    if not soups:
        raise ReportError("no phase of the report has a score")
    dense = [
        score.value
        for model in report.models
        if model.name == "dense" and (score := model.scores.get(split)) is not None
    ]
    return PhaseInfo(
        split, tuple(candidates), tuple(soups), dense[0] if dense else None, _metric(report)
    )


def _point(name: str, sparsity: float, score: ScoreRecord | None) -> list[PhasePoint]:
    if score is None:
        return []
    known = score.low is not None and score.high is not None
    interval = (score.low, score.high) if known else None
    return [PhasePoint(name, sparsity, score.value, interval)]  # type: ignore[arg-type]


def _metric(report: Report) -> str:
    found = [s.metric for m in report.models for s in m.scores.values() if s is not None]
    return found[0] if found else "accuracy"
