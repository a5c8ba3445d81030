"""Drawings of how one soup was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot.report.canvas import FONT, Drawing, Palette, legend, new_axes, range_with_room
from stockpot.report.info import format_value, split_name
from stockpot.report.soup_info import HeatInfo, PathInfo, PhaseInfo, PhasePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_LABELS = 16
_LONGEST_LABEL = 16


def draw_path(info: PathInfo, *, palette: Palette) -> Drawing:
    """Each decision by its step; the line is the score of the soup as it grew."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(palette)
    tips: dict[str, str] = {}
    looks = {
        "accepted": ("D", palette.soup, palette.soup),
        "rejected": ("o", palette.paper, palette.run),
        "at most": ("v", palette.paper, palette.muted),
    }
    if info.current:
        # The score holds until the next candidate that is accepted.
        last = max(point.step for point in info.points)
        line = [*info.current, (last, info.current[-1][1])]
        axes.step(
            [x for x, _ in line], [y for _, y in line], where="post", color=palette.soup,
            linewidth=1.2, alpha=0.7,
        )  # fmt: skip
    for i, point in enumerate(info.points):
        kind = "accepted" if point.accepted else "at most" if point.at_most else "rejected"
        mark, fill, edge = looks[kind]
        axes.plot(
            point.step, point.value, mark, ms=7, mfc=fill, mec=edge, mew=1.4, gid=f"pt-{i}",
            zorder=3,
        )  # fmt: skip
        shown = format_value(point.value, info.metric)
        told = f"step {point.step}, {kind} {shown}" if kind == "at most" else f"{kind}, {shown}"
        noise = "" if point.p_value is None else f", p = {point.p_value:.2g}"
        tips[f"pt-{i}"] = f"{point.candidate}\n{told}{noise}"
    used = {
        "accepted": any(p.accepted for p in info.points),
        "rejected": any(not p.accepted and not p.at_most for p in info.points),
        "at most": any(not p.accepted and p.at_most for p in info.points),
    }
    names = {"at most": "rejected early: at most"}
    legend(
        figure,
        [
            Line2D([], [], marker=m, linestyle="", ms=7, mfc=fill, mec=edge, color=edge,
                   label=names.get(kind, kind))
            for kind, (m, fill, edge) in looks.items() if used[kind]
        ],
        palette,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _in_per_cent(axes, [p.value for p in info.points], info.metric)
    axes.set_xlabel("step", color=palette.ink, fontsize=FONT)
    axes.set_ylabel(_axis(info.split, info.metric), color=palette.ink, fontsize=FONT)
    return Drawing(figure, tips)


def draw_heat(info: HeatInfo, *, palette: Palette) -> Drawing:
    """Coefficients as squares: the stronger, the larger; another colour where they are negative."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure, axes = new_axes(palette, box=(0.3, 0.27, 0.68, 0.71))
    axes.grid(visible=False)
    largest = info.largest or 1.0
    tips: dict[str, str] = {}
    for i, (group, row) in enumerate(zip(info.groups, info.values, strict=True)):
        for j, (one, value) in enumerate(zip(info.ingredients, row, strict=True)):
            colour = palette.soup if value >= 0 else palette.wise
            gid = f"pt-{i}-{j}"
            axes.add_patch(
                Rectangle(
                    (j - 0.47, i - 0.47), 0.94, 0.94, facecolor=colour,
                    edgecolor="none", alpha=0.06 + 0.94 * abs(value) / largest, gid=gid,
                )
            )  # fmt: skip
            tips[gid] = f"{one}\n{group}: {value:.4f}"
    axes.set_xlim(-0.5, len(info.ingredients) - 0.5)
    axes.set_ylim(len(info.groups) - 0.5, -0.5)
    for axis, names in ((axes.xaxis, info.ingredients), (axes.yaxis, info.groups)):
        every = -(-len(names) // _MOST_LABELS)
        shown = range(0, len(names), every)
        axis.set_ticks(list(shown), labels=[_short(names[i]) for i in shown])
        axis.set_tick_params(length=0)
    for label in axes.get_xticklabels():
        label.set_rotation(90)
        label.set_parse_math(False)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    signs = [(palette.soup, f"largest: {largest:.3f}")]
    if info.is_signed:
        signs.append((palette.wise, "negative"))
    handles = [
        Line2D([], [], marker="s", linestyle="", ms=8, color=colour, label=text)
        for colour, text in signs
    ]
    legend(figure, handles, palette)
    return Drawing(figure, tips)


def draw_phases(info: PhaseInfo, *, palette: Palette) -> Drawing:
    """Candidates and their soups by sparsity, with the dense model as a line."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    figure, axes = new_axes(palette)
    tips: dict[str, str] = {}
    points = [*((p, False) for p in info.candidates), *((p, True) for p in info.soups)]
    for i, (point, is_soup) in enumerate(points):
        colour = palette.soup if is_soup else palette.run
        if is_soup and point.interval is not None:
            axes.plot(
                [point.sparsity] * 2, point.interval, color=colour, linewidth=1.2, alpha=0.5
            )  # fmt: skip
        axes.plot(
            point.sparsity, point.value, "D" if is_soup else "o", ms=8 if is_soup else 6,
            mfc=colour if is_soup else palette.paper, mec=palette.paper if is_soup else colour,
            mew=0.8 if is_soup else 1.4, gid=f"pt-{i}", zorder=4 if is_soup else 3,
        )  # fmt: skip
        tips[f"pt-{i}"] = _phase_tip(point, info.metric)
    soups = sorted(info.soups, key=lambda p: p.sparsity)
    axes.plot(
        [p.sparsity for p in soups], [p.value for p in soups], color=palette.soup, linewidth=1.2
    )
    handles = [
        Line2D([], [], marker="D", color=palette.soup, ms=7, label="soup"),
        Line2D([], [], marker="o", linestyle="", ms=6, mfc="none", mec=palette.run, mew=1.4,
               label="candidate"),
    ]  # fmt: skip
    values = [p.value for p, _ in points]
    values += [bound for p in info.soups if p.interval is not None for bound in p.interval]
    if info.dense is not None:
        axes.axhline(info.dense, color=palette.ink, linewidth=1, linestyle=(0, (5, 2)))
        handles.append(Line2D([], [], color=palette.ink, linestyle=(0, (5, 2)), label="dense"))
        values.append(info.dense)
    legend(figure, handles, palette)
    axes.set_xlim(*range_with_room([p.sparsity for p, _ in points]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))
    _in_per_cent(axes, values, info.metric)
    axes.set_xlabel("sparsity (% of the prunable weights)", color=palette.ink, fontsize=FONT)
    axes.set_ylabel(_axis(info.split, info.metric), color=palette.ink, fontsize=FONT)
    return Drawing(figure, tips)


def _phase_tip(point: PhasePoint, metric: str) -> str:
    value = format_value(point.value, metric)
    return f"{point.name}\n{100 * point.sparsity:.2f} % zero, {value}"


def _in_per_cent(axes: Axes, values: list[float], metric: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(*range_with_room(values))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))


def _axis(split: str, metric: str) -> str:
    return f"{split_name(split)} {'(%)' if metric == 'accuracy' else metric}"


def _short(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= _LONGEST_LABEL else "…" + name[1 - _LONGEST_LABEL :]
