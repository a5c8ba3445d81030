"""What figures have in common: axes, marks, names beside points, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stockpot._figures import (
    Axis,
    Chart,
    Column,
    Heatmap,
    Point,
    Role,
    Row,
    ScatterChart,
    Table,
)
from stockpot.report.canvas import (
    FONT,
    Palette,
    cut,
    range_with_room,
    text_width,
)
from stockpot.report.labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LOOKS: dict[Role, tuple[str, str, bool]] = {
    "base": ("s", "base", True),
    "run": ("o", "run", False),
    "soup": ("D", "soup", True),
    "wise-ft": ("v", "wise", True),
    "ensemble": ("^", "ensemble", True),
    "accepted": ("D", "soup", True),
    "rejected": ("o", "run", False),
    "bound": ("v", "muted", False),
    "muted": ("o", "muted", True),
}
"""Mark, colour of the palette, and whether it is filled. No two differ in colour alone."""
_ORDER: tuple[tuple[str, str, bool], ...] = (
    ("o", "wise", True),
    ("D", "soup", True),
    ("^", "ensemble", True),
    ("s", "run", True),
    ("v", "ink", True),
)


MOST_ROWS = 40
"""Rows that a figure shows at most."""


def shown(value: float, axis: Axis | Column) -> str:
    """A number for people: per cent with one digit, else four digits; a real minus sign.

    >>> shown(0.97812, Axis(name="test", percent=True)), shown(-0.0123456, Axis(name="loss"))
    ('97.8', '−0.01235')
    """
    text = f"{100 * value:.1f}" if axis.percent else f"{value:.4g}"
    return text.replace("-", "−")


def shown_interval(low: float, high: float, axis: Axis | Column) -> str:
    """An interval for people; where a minus stands, no dash stands beside it.

    >>> shown_interval(0.95, 0.98, Axis(name="test", percent=True))
    '95.0–98.0'
    >>> shown_interval(-0.02, 0.01, Axis(name="difference", percent=True))
    '−2.0 to 1.0'
    """
    ends = shown(low, axis), shown(high, axis)
    return (" to " if "−" in "".join(ends) else "–").join(ends)


def number_table(
    chart: Chart, columns: tuple[Column, ...], rows: tuple[Row, ...], first: str = "point"
) -> Table:
    """The numbers of a chart under its title."""
    return Table(
        name=f"{chart.name}-numbers", title=chart.title, columns=columns, rows=rows, first=first
    )


def column_of(axis: Axis) -> Column:
    """A column of what stands on an axis."""
    return Column(name=axis.name, percent=axis.percent)


# Axes


def _logit(value: float, room: float = 2e-3) -> float:
    bounded = min(max(value, room), 1 - room)
    return math.log(bounded / (1 - bounded))


# Round fractions, the roundest first: tenths, the usual ones near 1, hundredths, half hundredths.
_LOGIT_TICKS = (
    *(i / 10 for i in range(1, 10)),
    *(0.95, 0.98, 0.99, 0.05, 0.02, 0.01, 0.995),
    *(i / 20 for i in range(1, 20)),
    *(i / 100 for i in range(1, 100)),
    *(i / 200 for i in range(1, 200)),
)


def _nice_ticks(low: float, high: float, *, room: float) -> list[float]:
    """Round fractions between two logits, no two closer than `room` of the axis."""
    kept: list[float] = []
    for value in _LOGIT_TICKS:
        at = _logit(value)
        far = (abs(at - _logit(other)) >= room * (high - low) for other in kept)
        if low <= at <= high and all(far):
            kept.append(value)
    for parts in (500, 1000, 2000, 5000):  # too short an axis for two round ones
        if len(kept) >= 2:
            break
        kept = [i / parts for i in range(1, parts) if low <= _logit(i / parts) <= high]
    return sorted(kept)


def place_on(axis: Axis) -> Callable[[float], float]:
    """Where a value stands: logit axes are linear axes of the logit, so that ticks can be round."""
    return _logit if axis.scale == "logit" else float


def set_scale(axes: Axes, which: str, axis: Axis, values: Sequence[float]) -> None:
    """Limits, ticks and name of one axis; `values` are as they stand on it."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    drawn = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    if axis.scale == "log":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        drawn.set_minor_locator(NullLocator())
        set_limits(min(values) / 1.25, max(values) * 1.25)
    else:
        limits = range_with_room(values)
        set_limits(*limits)
        if axis.scale == "logit":
            ticks = _nice_ticks(*limits, room=0.12 if which == "x" else 0.09)
            drawn.set_ticks([_logit(t) for t in ticks], labels=[f"{100 * t:g}" for t in ticks])
        else:
            drawn.set_major_locator(MaxNLocator(5 if which == "x" else 6, integer=axis.whole))
            factor = 100 if axis.percent else 1
            drawn.set_major_formatter(
                FuncFormatter(lambda value, _: f"{factor * value:.5g}".replace("-", "−"))
            )
    name = cut(axis.name, 52 if which == "x" else 38)
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(name, fontsize=FONT, parse_math=False)


def look_of(role: Role, number: int) -> tuple[str, str, bool]:
    """Mark, colour of the palette and whether it is filled: by role, else by place."""
    return _LOOKS[role] if role else _ORDER[number % len(_ORDER)]


def group_of(point: Point) -> str:
    """The name that stands for the point in the legend."""
    return point.group or point.role


def looks_of(points: Sequence[Point]) -> dict[str, tuple[str, str, bool]]:
    """How the points of each group look, in the order in which the groups appear."""
    looks: dict[str, tuple[str, str, bool]] = {}
    for point in points:
        looks.setdefault(group_of(point), look_of(point.role, len(looks)))
    return looks


def legend_handles(looks: dict[str, tuple[str, str, bool]], palette: Palette) -> list[object]:
    """A sample of each look, under its name."""
    from matplotlib.lines import Line2D

    handles: list[object] = []
    for name, (mark, field, filled) in looks.items():
        if name:
            colour = getattr(palette, field)
            face = colour if filled else "none"
            handles.append(
                Line2D([], [], marker=mark, linestyle="", ms=7, color=colour, mfc=face, label=name)
            )
    return handles


def draw_mark(
    axes: Axes,
    point: Point,
    at: tuple[float, float],
    look: tuple[str, str, bool],
    palette: Palette,
    *,
    gid: str,
) -> None:
    """One point; hollow ones are smaller."""
    mark, field, filled = look
    colour, filled = getattr(palette, field), filled and not point.hollow
    axes.plot(
        *at,
        mark,
        ms=5 if point.hollow else 7.5,
        mfc=colour if filled else palette.paper,
        mec=palette.paper if filled else colour,
        mew=0.8 if filled else 1.6,
        gid=gid,
        zorder=3.5 if filled else 3,
    )


def write_names(
    axes: Axes,
    points: Sequence[Point],
    obstacles: Sequence[tuple[float, float]],
    palette: Palette,
    chart: ScatterChart | Heatmap,
) -> None:
    """Names beside the points that have one, with a thin line where a name had to move away."""
    to_x, to_y = place_on(chart.x), place_on(chart.y)
    named = sorted((p for p in points if p.labelled), key=lambda p: (-p.y, p.x))
    anchors = [tuple(axes.transData.transform((to_x(p.x), to_y(p.y)))) for p in named]
    names = [cut(p.name, 26) for p in named]
    frame = axes.get_window_extent()
    boxes = place(
        anchors,
        [(text_width(name) + 4, 1.25 * FONT) for name in names],
        obstacles=[tuple(axes.transData.transform(at)) for at in obstacles],
        bounds=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 + 4, frame.y1 + 6),
    )
    back = axes.transData.inverted()
    for name, anchor, box in zip(names, anchors, boxes, strict=True):
        if box is None:
            continue
        near = (min(max(anchor[0], box.left), box.right), min(max(anchor[1], box.bottom), box.top))
        if math.dist(near, anchor) > 9:
            (ax, ay), (bx, by) = back.transform(anchor), back.transform(near)
            axes.plot([ax, bx], [ay, by], color=palette.muted, linewidth=0.7, zorder=2.8)
        x, y = back.transform(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
        axes.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=FONT - 0.5,
            color=palette.ink,
            parse_math=False,  # a name is no formula, even with dollar signs
            zorder=5,
        )
