"""Drawings of the figures of a diagnosis: one function for each of the five kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot.report.canvas import FONT, Drawing, Palette, legend, new_axes, range_with_room
from stockpot.report.diagnosis_info import (
    COUNT,
    Cloud,
    Courses,
    FigureInfo,
    LandscapeInfo,
    LandscapeMark,
    Matrix,
    Ranges,
)
from stockpot.report.labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MARKS = "oD^sv"
_DASHES: tuple[Any, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (5, 1.5, 1, 1.5)))
_MOST_NAMES = 14  # along a side of a matrix; more would run into each other
_MOST_ROWS = 40


def draw_figure(info: FigureInfo, *, palette: Palette) -> Drawing:
    """The drawing of a figure of any kind."""
    if isinstance(info, Cloud):
        return draw_cloud(info, palette=palette)
    if isinstance(info, Courses):
        return draw_courses(info, palette=palette)
    if isinstance(info, Matrix):
        return draw_matrix(info, palette=palette)
    if isinstance(info, Ranges):
        return draw_ranges(info, palette=palette)
    return draw_landscape(info, palette=palette)


def _colours(palette: Palette) -> tuple[str, ...]:
    return (palette.wise, palette.soup, palette.ensemble, palette.run, palette.ink)


def _names_of_axes(axes: Axes, palette: Palette, x: str, y: str = "") -> None:
    axes.set_xlabel(x, color=palette.ink, fontsize=FONT)
    axes.set_ylabel(y, color=palette.ink, fontsize=FONT)


def _number(value: float) -> str:
    """Three digits, with a real minus sign."""
    return f"{value:.3g}".replace("-", "−")


def draw_cloud(info: Cloud, *, palette: Palette) -> Drawing:
    """Groups differ in mark as well as in colour; every mark names its pair."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(palette, box=(0.19, 0.235, 0.79, 0.74))
    points = [point for group in info.groups for point in group.points]
    x_range = range_with_room([p.x for p in points])
    y_range = range_with_room([p.y for p in points])
    axes.set_xlim(*x_range)
    axes.set_ylim(*y_range)
    axes.axhline(0, color=palette.muted, linewidth=0.8)
    if info.diagonal:
        low, high = min(x_range[0], y_range[0]), max(x_range[1], y_range[1])
        axes.plot([low, high], [low, high], color=palette.ink, linewidth=1, alpha=0.5)
    tips: dict[str, str] = {}
    handles: list[object] = []
    for i, group in enumerate(info.groups):
        mark, colour = _MARKS[i % len(_MARKS)], _colours(palette)[i % len(_colours(palette))]
        for j, p in enumerate(group.points):
            gid = f"pt-{i}-{j}"
            axes.plot(p.x, p.y, mark, ms=4.5, mfc=colour, mec="none", alpha=0.75, gid=gid)
            x, y = (f"{name} {_number(v)}" for name, v in ((info.x_name, p.x), (info.y_name, p.y)))
            tips[gid] = f"{p.name}\n{x}, {y}"
        handles.append(
            Line2D([], [], marker=mark, linestyle="", ms=5, color=colour, label=group.name)
        )
    if info.diagonal:
        handles.append(Line2D([], [], color=palette.ink, alpha=0.5, label="equal"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _names_of_axes(axes, palette, info.x_name, info.y_name)
    if len(handles) > 1:
        legend(figure, handles, palette)
    return Drawing(figure, tips)


def draw_courses(info: Courses, *, palette: Palette) -> Drawing:
    """Lines that differ in dash and mark as well as in colour."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    n_rows = math.ceil((len(info.courses) + info.diagonal) / 2)
    bottom = 0.165 + 0.055 * n_rows
    figure, axes = new_axes(palette, box=(0.17, bottom, 0.81, 0.975 - bottom))
    if info.diagonal:
        axes.plot([0, 1], [0, 1], color=palette.ink, linewidth=1, alpha=0.5)
    tips: dict[str, str] = {}
    handles: list[object] = []
    for i, course in enumerate(info.courses):
        colour = _colours(palette)[i % len(_colours(palette))]
        mark, dash = _MARKS[i % len(_MARKS)], _DASHES[i // 2 % len(_DASHES)]
        axes.plot(course.x, course.y, color=colour, linestyle=dash, linewidth=1.5, alpha=0.9)
        if course.low is not None and course.high is not None:
            axes.fill_between(
                course.x, course.low, course.high, color=colour, alpha=0.15, linewidth=0
            )
        for j, (x, y) in enumerate(zip(course.x, course.y, strict=True)):
            axes.plot(x, y, mark, ms=3.5, color=colour, gid=f"pt-{i}-{j}")
            tips[f"pt-{i}-{j}"] = (
                f"{course.name}\n{info.x_name} {_number(x)}, {info.y_name} {_number(y)}"
            )
        handles.append(
            Line2D([], [], color=colour, linestyle=dash, marker=mark, ms=4, label=course.name)
        )
    if info.x_name == COUNT:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _names_of_axes(axes, palette, info.x_name, info.y_name)
    if info.diagonal:
        handles.append(Line2D([], [], color=palette.ink, alpha=0.5, label="equal"))
    if len(handles) > 1:
        legend(figure, handles, palette, n_columns=2)
    return Drawing(figure, tips)


def draw_matrix(info: Matrix, *, palette: Palette) -> Drawing:
    """Cells of one colour, the stronger the higher; every cell says its value."""
    from matplotlib.patches import Rectangle

    n_rows, n_columns = len(info.rows), len(info.columns)
    longest = max(map(len, info.rows))
    left = min(0.42, 0.03 + 0.0165 * longest)
    low = min(0.36, 0.03 + 0.018 * max(map(len, info.columns)))
    figure, axes = new_axes(palette, box=(left, low, 0.98 - left, 0.975 - low))
    axes.grid(visible=False)
    highest = max((v for row in info.values for v in row if v is not None), default=0.0) or 1.0
    tips: dict[str, str] = {}
    for i, row in enumerate(info.values):
        for j, value in enumerate(row):
            if value is None:
                continue
            share = 0.04 + 0.96 * max(0.0, value) / highest
            cell = Rectangle((j, n_rows - 1 - i), 1, 1, linewidth=0.6, edgecolor=palette.paper)
            cell.set_facecolor(_tint(palette.wise, share))
            cell.set_gid(f"pt-{i}-{j}")
            axes.add_patch(cell)
            tips[f"pt-{i}-{j}"] = (
                f"{info.rows[i]}, {info.columns[j]}\n{_number(value)} {info.unit}".rstrip()
            )
    axes.set_xlim(0, n_columns)
    axes.set_ylim(0, n_rows)
    shown = [range(0, n, math.ceil(n / _MOST_NAMES)) for n in (n_rows, n_columns)]
    axes.set_yticks([n_rows - 0.5 - i for i in shown[0]], [_cut(info.rows[i]) for i in shown[0]])
    axes.set_xticks([j + 0.5 for j in shown[1]], [_cut(info.columns[j]) for j in shown[1]])
    axes.tick_params(axis="x", rotation=90, length=0)
    axes.tick_params(axis="y", length=0)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
        label.set_fontsize(FONT - 2)
    return Drawing(figure, tips)


def _tint(colour: str, share: float) -> tuple[float, float, float, float]:
    """A colour with an opacity: over paper of any shade, more of it is more."""
    from matplotlib.colors import to_rgba

    red, green, blue, _ = to_rgba(colour)
    return red, green, blue, share


def _cut(name: str, most: int = 22) -> str:
    """A name that is not too long for an axis; its end tells more than its beginning."""
    return name if len(name) <= most else "…" + name[-most:]


def draw_ranges(info: Ranges, *, palette: Palette) -> Drawing:
    """A dot with a line for each row, the first on top; no more than forty rows."""
    from matplotlib.ticker import MaxNLocator

    rows = info.rows[:_MOST_ROWS]
    longest = max(len(_cut(row.name)) for row in rows)
    left = min(0.42, 0.03 + 0.0165 * longest)
    figure, axes = new_axes(palette, box=(left, 0.14, 0.96 - left, 0.835))
    height = max(3.6, 0.21 * len(rows) + 0.9)
    figure.set_size_inches(figure.get_figwidth(), height)
    axes.set_position((left, 0.5 / height, 0.96 - left, 1 - 0.62 / height))
    if info.zero:
        axes.axvline(0, color=palette.muted, linewidth=0.8)
    tips: dict[str, str] = {}
    for i, row in enumerate(rows):
        y = len(rows) - 1 - i
        interval = ""
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=palette.wise, linewidth=1.2, alpha=0.6)
            interval = f" ({_number(row.low)} to {_number(row.high)})"
        axes.plot(row.value, y, "o", ms=6, color=palette.wise, gid=f"pt-{i}")
        tips[f"pt-{i}"] = f"{row.name}\n{info.x_name} {_number(row.value)}{interval}"
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [_cut(row.name) for row in reversed(rows)])
    axes.grid(visible=False, axis="y")
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_fontsize(FONT - 2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    _names_of_axes(axes, palette, info.x_name)
    return Drawing(figure, tips)


_LANDSCAPE_MARKS = {"base": "s", "run": "o", "soup": "D", "midpoint": "D"}
_N_BANDS = 9


def draw_landscape(info: LandscapeInfo, *, palette: Palette) -> Drawing:
    """Bands of equal loss over the plane, with a scale, and a mark for every model."""
    from matplotlib.tri import Triangulation

    figure, axes = new_axes(palette, box=(0.115, 0.15, 0.695, 0.825))
    axes.grid(visible=False)
    x, y, loss = (np.array([spot[i] for spot in info.spots]) for i in range(3))
    # The models themselves are points of the surface too, where they lie in the plane.
    inside = [m for m in info.marks if m.distance < 1e-6 and m.loss is not None]
    x, y = (np.append(v, [getattr(m, n) for m in inside]) for v, n in ((x, "x"), (y, "y")))
    loss = np.append(loss, [m.loss for m in inside])
    first = np.unique(np.round(np.stack([x, y], 1), 9), axis=0, return_index=True)[1]
    levels = _levels(loss)
    colours = [_tint(palette.wise, 0.02 + 0.8 * i / (_N_BANDS - 1)) for i in range(_N_BANDS)]
    surface = Triangulation(x[first], y[first])
    axes.tricontourf(surface, loss[first], levels=levels, colors=colours, antialiased=False)
    if loss.max() > loss.min():
        axes.tricontour(
            surface, loss[first], levels=levels[1:-1], colors=palette.muted, linewidths=0.5,
            alpha=0.6,
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_xlim(float(x.min()), float(x.max()))
    axes.set_ylim(float(y.min()), float(y.max()))
    tips = _draw_marks(axes, info.marks, palette)
    _write_landscape_names(axes, info.marks, palette)
    _names_of_axes(axes, palette, "along the first model", "at right angles to it")
    scale = figure.add_axes((0.84, 0.15, 0.035, 0.765), facecolor="none")
    _draw_scale(scale, levels, colours, palette)
    return Drawing(figure, tips)


def _levels(loss: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bounds of the bands: closer where the loss is low, since that is where models are."""
    low, high = float(np.min(loss)), float(np.max(loss))
    room = max(high - low, 1e-6 * (1 + abs(low)))  # a flat landscape has bands, too
    levels: np.ndarray[Any, Any] = low + room * np.linspace(0, 1, _N_BANDS + 1) ** 2.5
    levels[0], levels[-1] = low - 1e-9 * room, low + (1 + 1e-9) * room
    return levels


def _draw_marks(axes: Axes, marks: Sequence[LandscapeMark], palette: Palette) -> dict[str, str]:
    colour = {"base": palette.base, "run": palette.run, "soup": palette.soup,
              "midpoint": palette.soup}  # fmt: skip
    tips: dict[str, str] = {}
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    for i, m in reversed(list(enumerate(marks))):
        if not (x0 <= m.x <= x1 and y0 <= m.y <= y1):
            continue
        inside = m.distance < 1e-6
        face = colour[m.kind] if inside and m.kind != "run" else palette.paper
        axes.plot(
            m.x, m.y, _LANDSCAPE_MARKS[m.kind], ms=8 if inside else 5, mfc=face,
            mec=palette.paper if face != palette.paper else colour[m.kind], mew=1.4,
            gid=f"pt-{i}", zorder=4 if inside else 3,
        )  # fmt: skip
        loss = "" if m.loss is None else f", loss {_number(m.loss)} nat"
        away = "" if inside else f"\n{_number(m.distance)} from the plane"
        tips[f"pt-{i}"] = f"{m.name}{loss}{away}"
    return tips


def _write_landscape_names(axes: Axes, every: Sequence[LandscapeMark], palette: Palette) -> None:
    """Names beside the models that span the plane and their average, clear of all other marks."""
    marks = [m for m in every if m.distance < 1e-6][:4]
    anchors = [axes.transData.transform((m.x, m.y)) for m in marks]
    names = ["average" if m.kind == "midpoint" else _cut(m.name, 16) for m in marks]
    frame = axes.get_window_extent()
    boxes = place(
        [(float(x), float(y)) for x, y in anchors],
        [(0.6 * FONT * len(name) + 4, 1.3 * FONT) for name in names],
        obstacles=[
            (float(x), float(y)) for x, y in (axes.transData.transform((m.x, m.y)) for m in every)
        ],
        bounds=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2),
    )
    back = axes.transData.inverted()
    for name, box in zip(names, boxes, strict=True):
        if box is None:
            continue
        x, y = back.transform(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
        axes.text(x, y, name, ha="center", va="center", fontsize=FONT - 0.5, color=palette.ink,
                  parse_math=False, zorder=5)  # fmt: skip


def _draw_scale(
    axes: Axes,
    levels: np.ndarray[Any, Any],
    colours: Sequence[tuple[float, float, float, float]],
    palette: Palette,
) -> None:
    """The bands one above the other, with the losses between them."""
    from matplotlib.patches import Rectangle

    for i, colour in enumerate(colours):
        axes.add_patch(Rectangle((0, i), 1, 1, facecolor=colour, edgecolor="none"))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, len(colours))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(range(0, len(levels), 3), [_number(float(v)) for v in levels[::3]])
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=FONT - 2)
    axes.set_title("nat", color=palette.muted, fontsize=FONT - 2, pad=4)
    for spine in axes.spines.values():
        spine.set_color(palette.muted)
