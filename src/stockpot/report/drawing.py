"""Drawings of what `info` computes: marks, names, axes, legends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stockpot.errors import ReportError
from stockpot.report.canvas import (
    FONT,
    Drawing,
    Palette,
    legend,
    new_axes,
    range_with_room,
)
from stockpot.report.info import CurveInfo, ScatterInfo, split_name
from stockpot.report.labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MARKS = {"base": "s", "run": "o", "soup": "D", "wise-ft": "v", "ensemble": "^"}
_NAMES = {
    "base": "base",
    "run": "single run",
    "soup": "soup",
    "wise-ft": "WiSE-FT, chosen",
    "ensemble": "ensemble",
}


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


def _scale_axes(axes: Axes, info: ScatterInfo, xs: list[float], ys: list[float]) -> None:
    """Limits from the points, not from the intervals, which would push the points together."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xlim(*range_with_room(xs))
    axes.set_ylim(*range_with_room(ys))
    if not info.logit:
        if _fractions(info):
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))
        return
    for axis, limits, room in (
        (axes.xaxis, axes.get_xlim(), 0.12),
        (axes.yaxis, axes.get_ylim(), 0.09),
    ):
        ticks = _nice_ticks(*limits, room=room)
        axis.set_ticks([_logit(t) for t in ticks], labels=[f"{100 * t:g}" for t in ticks])


def _fractions(info: ScatterInfo) -> bool:
    """Whether every score is one, and is shown in per cent."""
    return info.logit or all(0 <= v <= 1 for point in info.points for v in (point.x, point.y))


def _colour(palette: Palette, kind: str) -> str:
    return {
        "base": palette.base,
        "run": palette.run,
        "soup": palette.soup,
        "wise-ft": palette.wise,
        "ensemble": palette.ensemble,
    }[kind]


def draw_scatter(info: ScatterInfo, *, palette: Palette) -> Drawing:
    """The scatter; every mark has an id of its own, which `tips` explains."""
    figure, axes = new_axes(palette)
    to_axis = _logit if info.logit else float
    fractions = _fractions(info)
    unit = 100 if fractions else 1
    tips: dict[str, str] = {}
    xs = [to_axis(p.x) for p in info.points] + [to_axis(x) for t in info.traces for _, x, _ in t[1]]
    ys = [to_axis(p.y) for p in info.points] + [to_axis(y) for t in info.traces for *_, y in t[1]]
    if not xs:
        raise ReportError("no model of the report has both a test score and a shift average")
    _scale_axes(axes, info, xs, ys)

    def tip(name: str, x: float, y: float) -> str:
        digits = 1 if fractions else 4
        return (
            f"{name}\n{split_name(info.x_split)} {unit * x:.{digits}f}, "
            f"{split_name(info.y_split)} {unit * y:.{digits}f}"
        )

    for i, trace in enumerate(info.traces):
        tx = [to_axis(x) for _, x, _ in trace.points]
        ty = [to_axis(y) for *_, y in trace.points]
        axes.plot(tx, ty, color=palette.wise, linewidth=1.2, alpha=0.75, zorder=2)
        for j, (alpha, x, y) in enumerate(trace.points):
            gid = f"pt-{i}-{j}"
            axes.plot(tx[j], ty[j], "o", ms=3, color=palette.wise, gid=gid, zorder=2.5)
            tips[gid] = tip(f"WiSE-FT of {trace.name}, α = {alpha:.2f}", x, y)

    order = {"run": 0, "base": 1, "wise-ft": 2, "ensemble": 3, "soup": 4}
    for i, point in enumerate(sorted(info.points, key=lambda p: order[p.kind])):
        colour, x, y = _colour(palette, point.kind), to_axis(point.x), to_axis(point.y)
        if point.label is not None:
            for interval, along in ((point.x_interval, "x"), (point.y_interval, "y")):
                if interval is not None:
                    ends = [to_axis(v) for v in interval]
                    line = (ends, [y, y]) if along == "x" else ([x, x], ends)
                    axes.plot(*line, color=colour, linewidth=0.8, alpha=0.35, zorder=1.5)
        axes.plot(
            x,
            y,
            _MARKS[point.kind],
            ms=8 if point.kind != "run" else 7,
            mfc=palette.paper if point.kind == "run" else colour,
            mec=colour if point.kind == "run" else palette.paper,
            mew=1.6 if point.kind == "run" else 0.8,
            gid=f"pt-{i}",
            zorder=3 + i / 1000,
        )
        tips[f"pt-{i}"] = tip(point.name, point.x, point.y)
    _write_names(figure, axes, info, list(zip(xs, ys, strict=True)), palette)
    per_cent = " (%)" if fractions else ""
    axes.set_xlabel(f"{split_name(info.x_split)}{per_cent}", color=palette.ink, fontsize=FONT)
    axes.set_ylabel(f"{split_name(info.y_split)}{per_cent}", color=palette.ink, fontsize=FONT)
    _scatter_legend(figure, info, palette)
    return Drawing(figure, tips)


def _write_names(
    figure: Figure,
    axes: Axes,
    info: ScatterInfo,
    obstacles: list[tuple[float, float]],
    palette: Palette,
) -> None:
    """Names beside the headline models, with a thin line where the name had to move away."""
    to_axis = _logit if info.logit else float
    named = sorted((p for p in info.points if p.label is not None), key=lambda p: (-p.y, p.x))
    anchors = [axes.transData.transform((to_axis(p.x), to_axis(p.y))) for p in named]
    # The browser sets its own font, a little wider or narrower than the one measured here.
    sizes = [(0.58 * FONT * len(p.label or "") + 4, 1.25 * FONT) for p in named]
    frame = axes.get_window_extent()
    boxes = place(
        [(float(x), float(y)) for x, y in anchors],
        sizes,
        obstacles=[(float(x), float(y)) for x, y in map(axes.transData.transform, obstacles)],
        bounds=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 + 4, frame.y1 + 6),
    )
    back = axes.transData.inverted()
    for point, anchor, box in zip(named, anchors, boxes, strict=True):
        if box is None:
            continue
        middle = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
        near = (min(max(anchor[0], box.left), box.right), min(max(anchor[1], box.bottom), box.top))
        if math.dist(near, anchor) > 9:
            (ax, ay), (bx, by) = back.transform(anchor), back.transform(near)
            axes.plot([ax, bx], [ay, by], color=palette.muted, linewidth=0.7, zorder=2.8)
        text_x, text_y = back.transform(middle)
        axes.text(
            text_x,
            text_y,
            point.label or "",
            ha="center",
            va="center",
            fontsize=FONT - 0.5,
            color=palette.ink,
            parse_math=False,  # a name is no formula, even with dollar signs
            zorder=5,
        )


def _scatter_legend(figure: Figure, info: ScatterInfo, palette: Palette) -> None:
    from matplotlib.lines import Line2D

    kinds = [kind for kind in _MARKS if any(p.kind == kind for p in info.points)]
    handles = [
        Line2D(
            [],
            [],
            marker=_MARKS[kind],
            linestyle="",
            markersize=7,
            color=_colour(palette, kind),
            markerfacecolor="none" if kind == "run" else _colour(palette, kind),
            label=_NAMES[kind],
        )
        for kind in kinds
    ]
    if info.traces:
        handles.append(Line2D([], [], marker="o", ms=3, color=palette.wise, label="WiSE-FT, all α"))
    legend(figure, handles, palette)


_LINE_STYLES = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)))


def draw_curve(info: CurveInfo, *, palette: Palette) -> Drawing:
    """One α curve; lines differ in dash as well as in colour."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    figure, axes = new_axes(palette)
    values = [v for line in info.lines for v in line.y]
    if not values:
        raise ReportError(f"the curve {info.name!r} has no scores")
    fraction = all(0 <= v <= 1 for v in values)
    unit = 100 if fraction else 1
    tips: dict[str, str] = {}
    handles: list[object] = []
    colours = (palette.wise, palette.soup, palette.muted)
    if info.chosen is not None:
        axes.axvline(info.chosen, color=palette.ink, linewidth=1, alpha=0.6)
    for i, (line, colour, dash) in enumerate(zip(info.lines, colours, _LINE_STYLES, strict=False)):
        axes.plot(line.x, line.y, color=colour, linestyle=dash, linewidth=1.8)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
        for j, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            axes.plot(x, y, "os^"[i], ms=4, color=colour, gid=f"pt-{i}-{j}")
            tips[f"pt-{i}-{j}"] = (
                f"{info.x_name} = {x:.2f}\n{split_name(line.split)} "
                f"{unit * y:.{1 if fraction else 4}f}"
            )
        handles.append(
            Line2D(
                [], [], color=colour, linestyle=dash, marker="os^"[i], ms=4,
                label=split_name(line.split),
            )
        )  # fmt: skip
    if info.chosen is not None:
        handles.append(
            Line2D([], [], color=palette.ink, alpha=0.6, label=f"chosen: {info.chosen:.2f}")
        )
    axes.set_xlim(-0.03, 1.03)
    if fraction:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))
    axes.set_xlabel(f"{info.x_name}: 0 is the base, 1 is {info.name}", color=palette.ink,
                    fontsize=FONT, parse_math=False)  # fmt: skip
    axes.set_ylabel("score (%)" if fraction else "score", color=palette.ink, fontsize=FONT)
    legend(figure, handles, palette)
    return Drawing(figure, tips)
