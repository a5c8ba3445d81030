"""Each kind of figure: how it is drawn, and its numbers as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockpot._figures import (
    Chart,
    Column,
    Heatmap,
    IntervalChart,
    Line,
    LineChart,
    Point,
    Row,
    ScatterChart,
    Table,
)
from stockpot.report.canvas import (
    WIDTH,
    Drawing,
    Palette,
    cut,
    legend,
    new_axes,
    plain_labels,
    text_width,
)
from stockpot.report.heatmaps import draw_heatmap, numbers_of_heatmap
from stockpot.report.marks import (
    MOST_ROWS,
    column_of,
    draw_mark,
    group_of,
    legend_handles,
    look_of,
    looks_of,
    number_table,
    place_on,
    set_scale,
    shown,
    write_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_DASHES: tuple[Any, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1, 1.5)))


def draw(chart: Chart, palette: Palette) -> Drawing:
    """The drawing of a chart of any kind."""
    if isinstance(chart, LineChart):
        return _draw_lines(chart, palette)
    if isinstance(chart, ScatterChart):
        return _draw_scatter(chart, palette)
    if isinstance(chart, Heatmap):
        return draw_heatmap(chart, palette)
    return _draw_intervals(chart, palette)


def numbers(chart: Chart) -> Table:
    """The numbers of a chart, for those who cannot see it and for `--data`."""
    if isinstance(chart, LineChart):
        return _numbers_of_lines(chart)
    if isinstance(chart, ScatterChart):
        return _numbers_of_points(chart)
    if isinstance(chart, Heatmap):
        return numbers_of_heatmap(chart)
    rows = tuple(Row(name=name, cells=(found,)) for name, found in chart.rows)
    return number_table(chart, (column_of(chart.x),), rows)


def _rules(axes: Axes, chart: LineChart | ScatterChart, palette: Palette) -> list[object]:
    from matplotlib.lines import Line2D

    handles: list[object] = []
    looks: tuple[Any, ...] = ((0, ()), (0, (5, 2)))
    for rule, dash in zip(chart.rules, looks, strict=False):
        draw_rule = axes.axvline if rule.across == "x" else axes.axhline
        at = place_on(chart.x if rule.across == "x" else chart.y)(rule.value)
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


# Lines


def _draw_line(
    axes: Axes, line: Line, number: int, chart: LineChart | ScatterChart, palette: Palette
) -> tuple[object, dict[str, str]]:
    """One line with its band; a handle for the legend, and the name of each of its points."""
    from matplotlib.lines import Line2D

    mark, field, _ = look_of(line.role, number)
    colour, dash = getattr(palette, field), _DASHES[number // 2 % len(_DASHES)]
    if isinstance(chart, ScatterChart):
        mark, dash = "o", _DASHES[0]
    to_x, to_y = place_on(chart.x), place_on(chart.y)
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
    to_x, to_y = place_on(chart.x), place_on(chart.y)
    positions = [to_x(v) for line in chart.lines for v in line.x]
    set_scale(axes, "x", chart.x, positions or [0.0])
    set_scale(axes, "y", chart.y, [to_y(v) for v in values] or [0.0])
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
        return number_table(chart, columns, rows, chart.x.name)
    rows = tuple(
        Row(name=name, cells=(x, y), role=line.role)
        for line in chart.lines
        for name, x, y in zip(
            line.labels or (line.name,) * len(line.x), line.x, line.y, strict=True
        )
    )
    return number_table(chart, (column_of(chart.x), column_of(chart.y)), rows)


# Points


def _draw_scatter(chart: ScatterChart, palette: Palette) -> Drawing:
    figure, axes = new_axes(palette)
    to_x, to_y = place_on(chart.x), place_on(chart.y)
    # Limits from the points, not from the intervals, which would push the points together.
    xs = [to_x(p.x) for p in chart.points] + [to_x(v) for line in chart.lines for v in line.x]
    ys = [to_y(p.y) for p in chart.points] + [to_y(v) for line in chart.lines for v in line.y]
    ends = [to_y(v) for p in chart.points for v in (p.y_low, p.y_high) if v is not None]
    rules = [to_y(rule.value) for rule in chart.rules if rule.across == "y"]
    set_scale(axes, "x", chart.x, xs or [0.0])
    set_scale(axes, "y", chart.y, _with_ends([*ys, *rules] or [0.0], ends))
    tips: dict[str, str] = {}
    handles: list[object] = []
    for i, line in enumerate(chart.lines):
        handle, named = _draw_line(axes, line, i, chart, palette)
        handles.append(handle)
        tips |= named
    looks = looks_of(chart.points)
    for i, point in enumerate(chart.points):
        at = (to_x(point.x), to_y(point.y))
        _draw_intervals_of(axes, point, at, chart, getattr(palette, looks[group_of(point)][1]))
        draw_mark(axes, point, at, looks[group_of(point)], palette, gid=f"pt-{i}")
        tips[f"pt-{i}"] = _tip(point.name, chart, point.x, point.y, point.note)
    handles = [*legend_handles(looks, palette), *handles, *_rules(axes, chart, palette)]
    # The size of the axes follows from the legend, and the room for names from that of the axes.
    legend(figure, axes, handles if len(handles) > 1 else [], palette)
    write_names(axes, chart.points, list(zip(xs, ys, strict=True)), palette, chart)
    return Drawing(figure, tips)


def _with_ends(values: list[float], ends: list[float]) -> list[float]:
    """`values` with the ends of their intervals, unless these would push the points together."""
    both = [*values, *ends]
    spread = max(values) - min(values)
    return both if max(both) - min(both) <= 2 * spread else values


def _draw_intervals_of(
    axes: Axes, point: Point, at: tuple[float, float], chart: ScatterChart, colour: str
) -> None:
    x, y = at
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.4, "zorder": 1.5}
    if point.x_low is not None and point.x_high is not None:
        axes.plot([place_on(chart.x)(v) for v in (point.x_low, point.x_high)], [y, y], **thin)
    if point.y_low is not None and point.y_high is not None:
        axes.plot([x, x], [place_on(chart.y)(v) for v in (point.y_low, point.y_high)], **thin)


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
        column_of(chart.x),
        column_of(chart.y),
    )
    return number_table(chart, columns, tuple(rows))


# Intervals


def _draw_intervals(chart: IntervalChart, palette: Palette) -> Drawing:
    """A dot with a line for each row, the first on top; no more than forty rows."""
    rows = chart.rows[:MOST_ROWS]
    left = max(text_width(cut(name, 26)) for name, _ in rows) + 14 if rows else 40
    height = max(110.0, 22.0 * len(rows) + 62)
    figure, axes = new_axes(palette, height=height)
    axes.set_position((left / WIDTH, 46 / height, 1 - (left + 14) / WIDTH, 1 - 54 / height))
    ends = [v for _, found in rows for v in (found.value, found.low, found.high) if v is not None]
    ends += [] if chart.reference is None else [chart.reference]
    set_scale(axes, "x", chart.x, ends or [0.0])
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
