"""Tables and figures as plain data: what a recipe or an analysis has to show, apart from drawing.

A result says what it has to show with the six values below: `Table`, `LineChart`, `ScatterChart`,
`Heatmap` and `IntervalChart`. The report draws each kind in one way and puts the numbers beside it
as a table; the command line prints tables. Nothing here draws, and nothing computes.

Each has a `name` of lower-case letters, digits and dashes, which the code that makes it chooses and
which is never taken from a record: files are named after it. `title` is a heading; `explanation` is
one or two sentences that say what is seen and what its terms mean.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from stockpot._records import parse
from stockpot._types import JSON
from stockpot.errors import StockpotError

Role: TypeAlias = Literal[
    "", "base", "run", "soup", "wise-ft", "ensemble", "accepted", "rejected", "bound", "muted"
]
"""What a mark stands for, which decides its colour and shape; "" leaves both to the order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with the ends of its 95 % interval, where they are known."""

    value: float
    low: float | None = None
    high: float | None = None


Cell: TypeAlias = str | bool | int | float | Estimate | None
"""Of a table. None is shown as a dash: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: heading.
        percent: whether its numbers are fractions to be shown in per cent.
        help: what the heading means, where a reader may not know it.
    """

    name: str
    percent: bool = False
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: its name, a cell for each column, and how it stands out.

    Attributes:
        name: of a model, a step, a layer.
        cells: one for each column.
        role: of the model, which gives it a mark.
        chosen: whether this is the row that was chosen.
    """

    name: str
    cells: tuple[Cell, ...]
    role: Role = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of a chart, or the scale of a heat map.

    Attributes:
        name: with its unit, such as "barrier (nat)".
        percent: whether values are fractions to be shown in per cent.
        whole: whether values are counts.
        scale: how values are spaced; "logit" is for fractions close to 1.
    """

    name: str
    percent: bool = False
    whole: bool = False
    scale: Literal["linear", "log", "logit"] = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values along x, with a band where `low` and `high` are known.

    Attributes:
        name: in the legend.
        x: positions, rising.
        y: a value for each position.
        low: lower end of the band at each position.
        high: upper end of the band at each position.
        role: decides the colour.
        steps: whether a value holds until the next position.
        labels: name of each point, where points have names of their own.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    role: Role = ""
    steps: bool = False
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for other in (self.y, self.low, self.high, self.labels):
            if other is not None and len(other) != len(self.x):
                raise ValueError(f"the line {self.name!r} has {len(self.x)} positions, not all set")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark at (x, y).

    Attributes:
        name: shown when one points at it.
        x: position.
        y: position.
        x_low: lower end of the interval of x; the other three likewise.
        x_high: upper end.
        y_low: lower end.
        y_high: upper end.
        group: points of one group look alike and share an entry of the legend.
        role: decides the look of the group.
        labelled: whether the name is written beside the mark.
        hollow: drawn small and unfilled, for what lies beside what is shown.
        note: a second line below the name.
    """

    name: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    group: str = ""
    role: Role = ""
    labelled: bool = False
    hollow: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A straight line across a chart at a `value` of one axis, such as the one that was chosen."""

    name: str
    value: float
    across: Literal["x", "y"] = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What tables and charts have in common."""

    kind: ClassVar[str]

    name: str
    title: str
    explanation: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", self.name):
            raise ValueError(f"{self.name!r:.60} is no name for a figure")

    def to_json(self) -> dict[str, JSON]:
        """All fields, and which kind of figure this is."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Figure):
    """Rows of named cells. `first` heads the column of the rows' names."""

    kind: ClassVar[str] = "table"

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    first: str = "model"

    def __post_init__(self) -> None:
        super(Table, self).__post_init__()
        if any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} has more or fewer cells than columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart(Figure):
    """Lines over a common axis; `diagonal` asks for the line on which x and y are equal."""

    kind: ClassVar[str] = "lines"

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rules: tuple[Rule, ...] = ()
    diagonal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterChart(Figure):
    """Points, each with a name, and lines through some of them."""

    kind: ClassVar[str] = "scatter"

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    lines: tuple[Line, ...] = ()
    rules: tuple[Rule, ...] = ()
    diagonal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap(Figure):
    """A value, or None, for each row and column, on one colour scale.

    Attributes:
        rows: names; those of a plane are empty.
        columns: names; those of a plane are empty.
        values: `values[row][column]`, the first row on top (of a plane: at the bottom).
        scale: of the colours.
        least: the strongest colour stands for no less than this, so that small values look small.
        plane: the ranges (x from, x to, y from, y to) that the cells cover, where they are places
            of a plane rather than named.
        x: axis of a plane.
        y: axis of a plane.
        marks: models in a plane.
    """

    kind: ClassVar[str] = "heatmap"

    values: tuple[tuple[float | None, ...], ...]
    scale: Axis
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    least: float = 0.0
    plane: tuple[float, float, float, float] | None = None
    x: Axis = Axis(name="")
    y: Axis = Axis(name="")
    marks: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        super(Heatmap, self).__post_init__()
        if self.plane is None and [len(row) for row in self.values] != (
            [len(self.columns)] * len(self.rows)
        ):
            raise ValueError(f"{self.title!r} needs a value for each row and column")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalChart(Figure):
    """Values with intervals, one below the other; `reference` asks for a line, such as at 0."""

    kind: ClassVar[str] = "intervals"

    x: Axis
    rows: tuple[tuple[str, Estimate], ...]
    reference: float | None = None


Chart: TypeAlias = LineChart | ScatterChart | Heatmap | IntervalChart
AnyFigure: TypeAlias = Table | LineChart | ScatterChart | Heatmap | IntervalChart

_KINDS: dict[str, Any] = {
    cls.kind: cls for cls in (Table, LineChart, ScatterChart, Heatmap, IntervalChart)
}


def figure_from_json(value: object) -> AnyFigure:
    """The figure that `to_json` wrote.

    >>> found = figure_from_json(Table(name="t", title="T", columns=(), rows=()).to_json())
    >>> found.title
    'T'

    Raises:
        StockpotError: it is none; the message names the place.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise StockpotError(f"{kind!r:.60} is no kind of figure: {', '.join(_KINDS)}")
    figure: AnyFigure = parse(_KINDS[kind], value)
    return figure
