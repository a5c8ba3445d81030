"""Each kind of figure: how it is drawn, and its numbers as a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stockpot._figures import (
    Axis,
    Chart,
    Column,
    Heatmap,
    IntervalChart,
    Line,
    LineChart,
    Point,
    Role,
    Row,
    ScatterChart,
    Table,
)
from stockpot.report.canvas import (
    FONT,
    HEIGHT,
    WIDTH,
    Drawing,
    Palette,
    cut,
    legend,
    new_axes,
    plain_labels,
    range_with_room,
    text_width,
)
from stockpot.report.labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Value = str | bool | int | float | None

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
_DASHES: tuple[Any, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1, 1.5)))
_MOST_ROWS, _MOST_NAMES, _LONGEST = 40, 16, 22
_N_BANDS = 10


def draw(chart: Chart, palette: Palette) -> Drawing:
    """The drawing of a chart of any kind."""
    if isinstance(chart, LineChart):
        return _draw_lines(chart, palette)
    if isinstance(chart, ScatterChart):
        return _draw_scatter(chart, palette)
    if isinstance(chart, Heatmap):
        return _draw_heatmap(chart, palette)
    return _draw_intervals(chart, palette)


def numbers(chart: Chart) -> Table:
    """The numbers of a chart, for those who cannot see it and for `--data`."""
    if isinstance(chart, LineChart):
        return _numbers_of_lines(chart)
    if isinstance(chart, ScatterChart):
        return _numbers_of_points(chart)
    if isinstance(chart, Heatmap):
        return _numbers_of_heatmap(chart)
    rows = tuple(Row(name=name, cells=(found,)) for name, found in chart.rows)
    return _table(chart, (_column(chart.x),), rows)


def shown(value: float, axis: Axis | Column) -> str:
    """A number for people: per cent with one digit, else four digits; a real minus sign.

    >>> shown(0.97812, Axis(name="test", percent=True)), shown(-0.0123456, Axis(name="loss"))
    ('97.8', '−0.01235')
    """
    text = f"{100 * value:.1f}" if axis.percent else f"{value:.4g}"
    return text.replace("-", "−")


def _table(
    chart: Chart, columns: tuple[Column, ...], rows: tuple[Row, ...], first: str = "point"
) -> Table:
    return Table(
        name=f"{chart.name}-numbers", title=chart.title, columns=columns, rows=rows, first=first
    )


def _column(axis: Axis) -> Column:
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
    return sorted(kept)


def _place(axis: Axis) -> Callable[[float], float]:
    """Where a value stands: logit axes are linear axes of the logit, so that ticks can be round."""
    return _logit if axis.scale == "logit" else float


def _scale(axes: Axes, which: str, axis: Axis, values: Sequence[float]) -> None:
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


def _rules(axes: Axes, chart: LineChart | ScatterChart, palette: Palette) -> list[object]:
    from matplotlib.lines import Line2D

    handles: list[object] = []
    looks: tuple[Any, ...] = ((0, ()), (0, (5, 2)))
    for rule, dash in zip(chart.rules, looks, strict=False):
        draw_rule = axes.axvline if rule.across == "x" else axes.axhline
        at = _place(chart.x if rule.across == "x" else chart.y)(rule.value)
        draw_rule(at, color=palette.ink, linewidth=1, alpha=0.6, linestyle=dash)
        handles.append(
            Line2D([], [], color=palette.ink, alpha=0.6, linestyle=dash, label=rule.name)
        )
    if chart.diagonal:
        low = max(axes.get_xlim()[0], axes.get_ylim()[0])
        high = min(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color=palette.ink, linewidth=1, alpha=0.5)
        handles.append(Line2D([], [], color=palette.ink, alpha=0.5, label="equal"))
    return handles


def _look(role: Role, number: int) -> tuple[str, str, bool]:
    return _LOOKS[role] if role else _ORDER[number % len(_ORDER)]


# Lines


def _draw_line(
    axes: Axes, line: Line, number: int, chart: LineChart | ScatterChart, palette: Palette
) -> tuple[object, dict[str, str]]:
    """One line with its band; a handle for the legend, and the name of each of its points."""
    from matplotlib.lines import Line2D

    mark, field, _ = _look(line.role, number)
    colour, dash = getattr(palette, field), _DASHES[number // 2 % len(_DASHES)]
    if isinstance(chart, ScatterChart):
        mark, dash = "o", _DASHES[0]
    to_x, to_y = _place(chart.x), _place(chart.y)
    x, y = [to_x(v) for v in line.x], [to_y(v) for v in line.y]
    draw_line = axes.step if line.steps else axes.plot
    options: dict[str, Any] = {"where": "post"} if line.steps else {}
    draw_line(x, y, color=colour, linestyle=dash, linewidth=1.5, alpha=0.85, zorder=2, **options)
    if line.low is not None and line.high is not None:
        low, high = [to_y(v) for v in line.low], [to_y(v) for v in line.high]
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    tips: dict[str, str] = {}
    for j in range(0 if not line.steps else len(x), len(x)):
        gid = f"pt-l{number}-{j}"
        axes.plot(x[j], y[j], mark, ms=3.5, color=colour, gid=gid, zorder=2.5)
        name = line.name if line.labels is None else line.labels[j]
        tips[gid] = _tip(name, chart, line.x[j], line.y[j])
    marker = None if line.steps else mark
    handle = Line2D([], [], color=colour, linestyle=dash, marker=marker, ms=4, label=line.name)
    return handle, tips


def _tip(name: str, chart: LineChart | ScatterChart, x: float, y: float, note: str = "") -> str:
    text = f"{name}\n{chart.x.name} {shown(x, chart.x)}, {chart.y.name} {shown(y, chart.y)}"
    return f"{text}\n{note}" if note else text


def _draw_lines(chart: LineChart, palette: Palette) -> Drawing:
    figure, axes = new_axes(palette)
    values = [
        v for line in chart.lines for bound in (line.y, line.low, line.high) for v in bound or ()
    ]
    to_x, to_y = _place(chart.x), _place(chart.y)
    positions = [to_x(v) for line in chart.lines for v in line.x]
    _scale(axes, "x", chart.x, positions or [0.0])
    _scale(axes, "y", chart.y, [to_y(v) for v in values] or [0.0])
    tips: dict[str, str] = {}
    handles: list[object] = []
    for i, line in enumerate(chart.lines):
        handle, named = _draw_line(axes, line, i, chart, palette)
        handles.append(handle)
        tips |= named
    handles += _rules(axes, chart, palette)
    legend(figure, axes, handles if len(handles) > 1 else [], palette)
    return Drawing(figure, tips)


def _numbers_of_lines(chart: LineChart) -> Table:
    """Lines over the same few positions side by side, others one below the other."""
    positions = sorted({x for line in chart.lines for x in line.x})
    if len(chart.lines) <= 4 and all(line.labels is None for line in chart.lines):
        found = [dict(zip(line.x, line.y, strict=True)) for line in chart.lines]
        rows = tuple(
            Row(name=shown(x, chart.x), cells=tuple(one.get(x) for one in found)) for x in positions
        )
        columns = tuple(Column(name=line.name, percent=chart.y.percent) for line in chart.lines)
        return _table(chart, columns, rows, chart.x.name)
    rows = tuple(
        Row(name=name, cells=(x, y), role=line.role)
        for line in chart.lines
        for name, x, y in zip(
            line.labels or (line.name,) * len(line.x), line.x, line.y, strict=True
        )
    )
    return _table(chart, (_column(chart.x), _column(chart.y)), rows)


# Points


def _draw_scatter(chart: ScatterChart, palette: Palette) -> Drawing:
    figure, axes = new_axes(palette)
    to_x, to_y = _place(chart.x), _place(chart.y)
    # Limits from the points, not from the intervals, which would push the points together.
    xs = [to_x(p.x) for p in chart.points] + [to_x(v) for line in chart.lines for v in line.x]
    ys = [to_y(p.y) for p in chart.points] + [to_y(v) for line in chart.lines for v in line.y]
    ends = [to_y(v) for p in chart.points for v in (p.y_low, p.y_high) if v is not None]
    rules = [to_y(rule.value) for rule in chart.rules if rule.across == "y"]
    _scale(axes, "x", chart.x, xs or [0.0])
    _scale(axes, "y", chart.y, _with_ends([*ys, *rules] or [0.0], ends))
    tips: dict[str, str] = {}
    handles: list[object] = []
    for i, line in enumerate(chart.lines):
        handle, named = _draw_line(axes, line, i, chart, palette)
        handles.append(handle)
        tips |= named
    looks = _looks(chart.points)
    for i, point in enumerate(chart.points):
        at = (to_x(point.x), to_y(point.y))
        _draw_intervals_of(axes, point, at, chart, getattr(palette, looks[_group(point)][1]))
        _draw_mark(axes, point, at, looks[_group(point)], palette, gid=f"pt-{i}")
        tips[f"pt-{i}"] = _tip(point.name, chart, point.x, point.y, point.note)
    handles = [*_handles(looks, palette), *handles, *_rules(axes, chart, palette)]
    # The size of the axes follows from the legend, and the room for names from that of the axes.
    legend(figure, axes, handles if len(handles) > 1 else [], palette)
    _write_names(axes, chart.points, list(zip(xs, ys, strict=True)), palette, chart)
    return Drawing(figure, tips)


def _with_ends(values: list[float], ends: list[float]) -> list[float]:
    """`values` with the ends of their intervals, unless these would push the points together."""
    both = [*values, *ends]
    spread = max(values) - min(values)
    return both if max(both) - min(both) <= 2 * spread else values


def _group(point: Point) -> str:
    return point.group or point.role


def _looks(points: Sequence[Point]) -> dict[str, tuple[str, str, bool]]:
    """How the points of each group look, in the order in which the groups appear."""
    looks: dict[str, tuple[str, str, bool]] = {}
    for point in points:
        looks.setdefault(_group(point), _look(point.role, len(looks)))
    return looks


def _handles(looks: dict[str, tuple[str, str, bool]], palette: Palette) -> list[object]:
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


def _draw_intervals_of(
    axes: Axes, point: Point, at: tuple[float, float], chart: ScatterChart, colour: str
) -> None:
    x, y = at
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.4, "zorder": 1.5}
    if point.x_low is not None and point.x_high is not None:
        axes.plot([_place(chart.x)(v) for v in (point.x_low, point.x_high)], [y, y], **thin)
    if point.y_low is not None and point.y_high is not None:
        axes.plot([x, x], [_place(chart.y)(v) for v in (point.y_low, point.y_high)], **thin)


def _draw_mark(
    axes: Axes,
    point: Point,
    at: tuple[float, float],
    look: tuple[str, str, bool],
    palette: Palette,
    *,
    gid: str,
) -> None:
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


def _write_names(
    axes: Axes,
    points: Sequence[Point],
    obstacles: Sequence[tuple[float, float]],
    palette: Palette,
    chart: ScatterChart | Heatmap,
) -> None:
    """Names beside the points that have one, with a thin line where a name had to move away."""
    to_x, to_y = _place(chart.x), _place(chart.y)
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


def _numbers_of_points(chart: ScatterChart) -> Table:
    grouped = len({point.group for point in chart.points}) > 1
    rows = [
        Row(name=p.name, role=p.role, cells=(*((p.group,) if grouped else ()), p.x, p.y))
        for p in chart.points
    ]
    for line in chart.lines:
        if not line.steps:
            names = line.labels or (line.name,) * len(line.x)
            rows += [
                Row(name=name, role=line.role, cells=(*(("",) if grouped else ()), x, y))
                for name, x, y in zip(names, line.x, line.y, strict=True)
            ]
    columns = (
        *((Column(name="kind"),) if grouped else ()),
        _column(chart.x),
        _column(chart.y),
    )
    return _table(chart, columns, tuple(rows))


# Heat maps


def _draw_heatmap(chart: Heatmap, palette: Palette) -> Drawing:
    """Cells, or a plane, in the tints of one scale, with its bar."""
    left = max([*(text_width(cut(name, _LONGEST)) for name in chart.rows), 34]) + 14
    below = max([*(text_width(cut(name, _LONGEST)) for name in chart.columns), 30]) + 14
    height = max(HEIGHT, 13.0 * min(len(chart.rows), _MOST_ROWS) + below + 16)
    figure, axes = new_axes(palette, height=height)
    axes.set_position(
        (left / WIDTH, below / height, 1 - (left + 76) / WIDTH, 1 - (below + 16) / height)
    )
    axes.grid(visible=False)
    levels = _levels(chart)
    tips = (_draw_cells if chart.plane is None else _draw_plane)(axes, chart, levels, palette)
    bar = figure.add_axes(
        (1 - 62 / WIDTH, below / height, 13 / WIDTH, 1 - (below + 38) / height), facecolor="none"
    )
    _draw_bar(bar, chart, levels, palette)
    return Drawing(figure, tips)


def _levels(chart: Heatmap) -> list[float]:
    """Bounds of the bands of one colour: from 0 where the scale is linear, else from the least."""
    known = [v for row in chart.values for v in row if v is not None] or [0.0]
    low, high = min(known), max(known)
    if chart.scale.scale == "log" and low > 0:
        low, high = low * (1 - 1e-9), high * (1 + 1e-6)  # the ends lie inside the bands
        return [low * (high / low) ** (i / _N_BANDS) for i in range(_N_BANDS + 1)]
    high = max(abs(low), abs(high), chart.least) or 1.0
    start = -high if low < 0 else 0.0
    return [start + (high - start) * i / _N_BANDS for i in range(_N_BANDS + 1)]


def _tint(value: float, levels: Sequence[float], palette: Palette) -> Any:
    """A colour with an opacity: over paper of any shade, more of it is more.

    Values below 0 have a colour of their own, and 0 has none.
    """
    from matplotlib.colors import to_rgba

    start = max(0.0, levels[0])
    if levels[0] > 0 and levels[-1] > levels[0]:  # logarithmic
        share = math.log(value / levels[0]) / math.log(levels[-1] / levels[0])
    else:
        share = (abs(value) - start) / (levels[-1] - start)
    red, green, blue, _ = to_rgba(palette.wise if value >= 0 else palette.soup)
    return red, green, blue, 0.02 + 0.93 * min(max(share, 0.0), 1.0)


def _draw_cells(
    axes: Axes, chart: Heatmap, levels: Sequence[float], palette: Palette
) -> dict[str, str]:
    from matplotlib.patches import Rectangle

    tips: dict[str, str] = {}
    for i, row in enumerate(chart.values):
        for j, value in enumerate(row):
            if value is not None:
                cell = Rectangle((j, i), 1, 1, linewidth=0.6, edgecolor=palette.paper)
                cell.set_facecolor(_tint(value, levels, palette))
                cell.set_gid(f"pt-{i}-{j}")
                axes.add_patch(cell)
                text = f"{chart.scale.name} {shown(value, chart.scale)}"
                tips[f"pt-{i}-{j}"] = f"{chart.rows[i]}, {chart.columns[j]}\n{text}"
    axes.set_xlim(0, max(1, len(chart.columns)))
    axes.set_ylim(max(1, len(chart.rows)), 0)
    for axis, names, most in (
        (axes.xaxis, chart.columns, _MOST_NAMES + 2),
        (axes.yaxis, chart.rows, _MOST_ROWS),
    ):
        which = range(0, len(names), max(1, math.ceil(len(names) / most)))
        axis.set_ticks([i + 0.5 for i in which], labels=[cut(names[i], _LONGEST) for i in which])
        axis.set_tick_params(length=0)
    for label in axes.get_xticklabels():
        label.set_rotation(90)
    plain_labels(axes)
    return tips


def _draw_plane(
    axes: Axes, chart: Heatmap, levels: Sequence[float], palette: Palette
) -> dict[str, str]:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    assert chart.plane is not None
    x0, x1, y0, y1 = chart.plane
    values = np.array([[math.nan if v is None else v for v in row] for row in chart.values])
    x, y = np.linspace(x0, x1, values.shape[1]), np.linspace(y0, y1, values.shape[0])
    colours = [_tint((a + b) / 2, levels, palette) for a, b in itertools.pairwise(levels)]
    axes.contourf(x, y, np.ma.masked_invalid(values), levels=levels, colors=colours)
    axes.set_aspect("equal", anchor="C")
    # Without the first tick of x, which would stand in the corner, on that of y.
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="lower"))
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    axes.set_xlabel(chart.x.name, fontsize=FONT)
    axes.set_ylabel(chart.y.name, fontsize=FONT)
    looks, tips = _looks(chart.marks), dict[str, str]()
    inside = [p for p in chart.marks if x0 <= p.x <= x1 and y0 <= p.y <= y1]
    for i, point in reversed(list(enumerate(inside))):
        _draw_mark(axes, point, (point.x, point.y), looks[_group(point)], palette, gid=f"pt-{i}")
        tips[f"pt-{i}"] = f"{point.name}\n{point.note}" if point.note else point.name
    axes.apply_aspect()
    _write_names(axes, inside, [(p.x, p.y) for p in inside], palette, chart)
    return tips


def _draw_bar(axes: Axes, chart: Heatmap, levels: Sequence[float], palette: Palette) -> None:
    """The bands one above the other, with the values between them."""
    from matplotlib.patches import Rectangle

    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        colour = _tint((a + b) / 2, levels, palette)
        axes.add_patch(Rectangle((0, i), 1, 1, facecolor=colour, edgecolor="none"))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, _N_BANDS)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    which = range(0, len(levels), 2)
    axes.set_yticks(list(which), [_short(levels[i], chart.scale) for i in which])
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=FONT - 2)
    axes.set_title(
        cut(chart.scale.name, 26),
        color=palette.muted,
        fontsize=FONT - 2,
        pad=10,
        loc="right",
        x=3.6,
        parse_math=False,
    )
    for spine in axes.spines.values():
        spine.set_color(palette.muted)


def _short(value: float, axis: Axis) -> str:
    return f"{100 * value:.3g}" if axis.percent else f"{value:.2g}".replace("-", "−")


def _numbers_of_heatmap(chart: Heatmap) -> Table:
    if chart.plane is not None:
        columns = (Column(name=chart.x.name), Column(name=chart.y.name), Column(name="note"))
        rows = tuple(Row(name=p.name, cells=(p.x, p.y, p.note), role=p.role) for p in chart.marks)
        return _table(chart, columns, rows, "model")
    named = tuple(Column(name=name, percent=chart.scale.percent) for name in chart.columns)
    rows = tuple(
        Row(name=name, cells=row) for name, row in zip(chart.rows, chart.values, strict=True)
    )
    return _table(chart, named, rows, "row")


# Intervals


def _draw_intervals(chart: IntervalChart, palette: Palette) -> Drawing:
    """A dot with a line for each row, the first on top; no more than forty rows."""
    rows = chart.rows[:_MOST_ROWS]
    left = max(text_width(cut(name, 26)) for name, _ in rows) + 14 if rows else 40
    height = max(110.0, 22.0 * len(rows) + 62)
    figure, axes = new_axes(palette, height=height)
    axes.set_position((left / WIDTH, 46 / height, 1 - (left + 14) / WIDTH, 1 - 54 / height))
    ends = [v for _, found in rows for v in (found.value, found.low, found.high) if v is not None]
    ends += [] if chart.reference is None else [chart.reference]
    _scale(axes, "x", chart.x, ends or [0.0])
    if chart.reference is not None:
        axes.axvline(chart.reference, color=palette.ink, linewidth=1, alpha=0.6)
    tips: dict[str, str] = {}
    for i, (name, found) in enumerate(rows):
        text = shown(found.value, chart.x)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [i, i], color=palette.wise, linewidth=2, alpha=0.55)
            text += f" ({shown(found.low, chart.x)} to {shown(found.high, chart.x)})"
        axes.plot(found.value, i, "o", ms=7, color=palette.wise, gid=f"pt-{i}")
        tips[f"pt-{i}"] = f"{name}\n{chart.x.name} {text}"
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [cut(name, 26) for name, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
    axes.grid(visible=False, axis="y")
    plain_labels(axes)
    return Drawing(figure, tips)
