"""Heat maps: a table in tints of one scale, or a plane through three models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stockpot._figures import (
    Axis,
    Column,
    Heatmap,
    Row,
    Table,
)
from stockpot.report.canvas import (
    FONT,
    HEIGHT,
    WIDTH,
    Drawing,
    Palette,
    cut,
    new_axes,
    plain_labels,
    text_width,
)
from stockpot.report.marks import (
    MOST_ROWS,
    draw_mark,
    group_of,
    looks_of,
    number_table,
    shown,
    write_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Value = str | bool | int | float | None

_MOST_NAMES, _LONGEST = 16, 22
_N_BANDS = 10


def draw_heatmap(chart: Heatmap, palette: Palette) -> Drawing:
    """Cells, or a plane, in the tints of one scale, with its bar."""
    left = max([*(text_width(cut(name, _LONGEST)) for name in chart.rows), 34]) + 14
    left += 0 if chart.plane is None else 26  # the name of the axis stands beside the numbers
    below = max([*(text_width(cut(name, _LONGEST)) for name in chart.columns), 30]) + 14
    height = max(HEIGHT, 13.0 * min(len(chart.rows), MOST_ROWS) + below + 16)
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
        (axes.yaxis, chart.rows, MOST_ROWS),
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
    looks, tips = looks_of(chart.marks), dict[str, str]()
    inside = [p for p in chart.marks if x0 <= p.x <= x1 and y0 <= p.y <= y1]
    for i, point in reversed(list(enumerate(inside))):
        draw_mark(axes, point, (point.x, point.y), looks[group_of(point)], palette, gid=f"pt-{i}")
        tips[f"pt-{i}"] = f"{point.name}\n{point.note}" if point.note else point.name
    axes.apply_aspect()
    write_names(axes, inside, [(p.x, p.y) for p in inside], palette, chart)
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


def numbers_of_heatmap(chart: Heatmap) -> Table:
    """The cells of a table, or the models on a plane."""
    if chart.plane is not None:
        columns = (Column(name=chart.x.name), Column(name=chart.y.name), Column(name="note"))
        rows = tuple(Row(name=p.name, cells=(p.x, p.y, p.note), role=p.role) for p in chart.marks)
        return number_table(chart, columns, rows, "model")
    named = tuple(Column(name=name, percent=chart.scale.percent) for name in chart.columns)
    rows = tuple(
        Row(name=name, cells=row) for name, row in zip(chart.rows, chart.values, strict=True)
    )
    return number_table(chart, named, rows, "row")
