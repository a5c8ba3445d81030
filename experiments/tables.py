"""Cells of the tables over several sweeps or seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t-interval of the mean of `values`, of which there are two or more."""
    mean, error = statistics.fmean(values), stats.sem(values)
    low, high = (
        stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error else (mean,) * 2
    )
    return float(low), float(high)


@dataclass(frozen=True)
class Cell:
    """Mean over sweeps, and a 95 % t-interval of it."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def over_seeds(values: Sequence[float]) -> Cell:
    """Mean and interval of one value per sweep; of a single one there is no interval."""
    if len(values) == 1:
        return Cell(values[0], float("nan"), float("nan"))
    return Cell(statistics.fmean(values), *t_interval(values))


def less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Differences, paired by sweep."""
    return [a - b for a, b in zip(one, other, strict=True)]


def in_percent(cell: Cell) -> str:
    """`97.50 ± 0.33`."""
    half = "" if cell.half != cell.half else f" ± {100 * cell.half:.2f}"
    return f"{100 * cell.mean:.2f}{half}"


def in_points(cell: Cell) -> str:
    """`+0.16 [-0.11, +0.43] (n)`, where (n) marks an interval that holds 0."""
    if cell.half != cell.half:
        return f"{100 * cell.mean:+.2f}"
    noise = " (n)" if cell.low <= 0 <= cell.high else ""
    return f"{100 * cell.mean:+.2f} [{100 * cell.low:+.2f}, {100 * cell.high:+.2f}]{noise}"


def percent(values: Sequence[float]) -> str:
    """The cell of one value per sweep, in percent."""
    return in_percent(over_seeds(values))


def points(one: Sequence[float], other: Sequence[float]) -> str:
    """The cell of the differences between two values per sweep, in points."""
    return in_points(over_seeds(less(one, other)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
