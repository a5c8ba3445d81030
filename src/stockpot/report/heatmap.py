"""Which ingredient gives how much to which layer of a learned soup, as a picture of its own.

The page draws the same numbers in a box of fixed size, with a name for each mark; here the picture
grows with the layers, so that all can be named.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._types import StrPath
from stockpot.errors import ReportError
from stockpot.io.atomic import refuse_existing, write_bytes
from stockpot.report.canvas import FONT, LIGHT, Palette
from stockpot.report.soup_info import HeatInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = (".svg", ".png", ".pdf")

_CELL, _NAMES, _SIDE, _BELOW = 26.0, 6.4, 78.0, 20.0
"""Points: of a cell, of a letter of a name, beside the cells, and below them."""
_MOST_ROWS, _MOST_HEIGHT = 40, 1200.0
"""More rows than this become thinner, and not every one is named."""


def get_coefficients_info(coefficients: Mapping[str, Any]) -> HeatInfo:
    """From the `coefficients` of a soup or of its JSON: `{path: c}`, or `{group: {path: c}}`.

    Ingredients that a group leaves out have 0 there.

    >>> info = get_coefficients_info({"block.0": {"a.pt": 0.75, "b.pt": 0.25}, "head": {"b.pt": 1}})
    >>> info.groups, info.ingredients, info.values
    (('block.0', 'head'), ('a', 'b'), ((0.75, 0.25), (0.0, 1.0)))

    Raises:
        ReportError: there are none.
    """
    if not coefficients:
        raise ReportError("this soup has no coefficients to show")
    nested = all(isinstance(value, Mapping) for value in coefficients.values())
    groups: Mapping[str, Any] = coefficients if nested else {"model": coefficients}
    paths = list(dict.fromkeys(path for row in groups.values() for path in row))
    values = tuple(tuple(float(row.get(path, 0.0)) for path in paths) for row in groups.values())
    return HeatInfo(tuple(groups), _names(paths), values)


def _names(paths: list[str]) -> tuple[str, ...]:
    """File names without their ending where these tell them apart, else the whole paths."""
    short = [Path(path).stem for path in paths]
    return tuple(short if len(set(short)) == len(short) else paths)


def draw_coefficients(info: HeatInfo, *, palette: Palette = LIGHT) -> Figure:
    """A cell for each coefficient, as dark as it is large; negative ones in another colour."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    rows, columns = len(info.groups), len(info.ingredients)
    height = min(_CELL * rows, _MOST_HEIGHT) if rows > _MOST_ROWS else _CELL * rows
    left = 14 + _NAMES * max(map(len, info.groups))
    below = _BELOW + _NAMES * max(map(len, info.ingredients)) * 0.7
    width = max(_CELL * columns, 3 * _CELL)
    total = (left + width + _SIDE, below + height + 14)
    figure = Figure(figsize=(total[0] / 72, total[1] / 72), dpi=72, facecolor=palette.paper)
    axes = figure.add_axes((left / total[0], below / total[1], width / total[0], height / total[1]))
    ends = [palette.wise, palette.paper, palette.soup] if info.is_signed else [
        palette.paper, palette.soup]  # fmt: skip
    cells = axes.imshow(
        info.values,
        aspect="auto",
        interpolation="nearest",
        cmap=LinearSegmentedColormap.from_list("coefficients", ends),
        vmin=-info.largest if info.is_signed else 0.0,
        vmax=info.largest,
    )
    step = -(-rows * FONT // height)  # so that names do not run into each other
    shown = range(0, rows, max(1, round(step)))
    axes.set_yticks(list(shown), labels=[info.groups[i] for i in shown])
    axes.set_xticks(range(columns), labels=list(info.ingredients), rotation=45, ha="right")
    axes.tick_params(length=0, labelsize=FONT - 2, labelcolor=palette.ink)
    for spine in axes.spines.values():
        spine.set_color(palette.grid)
    bar = figure.colorbar(
        cells,
        cax=figure.add_axes(
            ((left + width + 14) / total[0], below / total[1], 12 / total[0], height / total[1])
        ),
    )
    bar.outline.set_edgecolor(palette.grid)
    bar.ax.tick_params(labelsize=FONT - 2, labelcolor=palette.muted, color=palette.muted)
    if rows > 3:  # where there is room for the word
        bar.set_label("coefficient", color=palette.ink, fontsize=FONT - 1)
    return figure


def coefficients_map(coefficients: Mapping[str, Any], *, palette: Palette = LIGHT) -> Figure:
    """The heat map of a soup's coefficients: layers downwards, ingredients across.

    Args:
        coefficients: of a `Soup`, or of its JSON.
        palette: colours.
    """
    return draw_coefficients(get_coefficients_info(coefficients), palette=palette)


def save_coefficients_map(
    coefficients: Mapping[str, Any], path: StrPath, *, force: bool = False
) -> None:
    """Write the heat map to `path`, whole or not at all: .svg, .png or .pdf.

    Raises:
        ReportError: another ending.
        OutputExistsError: `path` exists and `force` is not given.
    """
    check_figure(path, force=force)
    import matplotlib as mpl

    buffer = io.BytesIO()
    ending = Path(path).suffix
    # Text stays text where the format allows it; no date, so that equal soups give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stockpot"}):
        coefficients_map(coefficients).savefig(
            buffer,
            format=ending[1:],
            dpi=144,
            metadata={".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending),
        )
    write_bytes(Path(path), buffer.getvalue())


def check_figure(path: StrPath, *, force: bool) -> None:
    """Refuse a figure that could not be written; for before the work begins."""
    if Path(path).suffix not in FORMATS:
        raise ReportError(f"{path} does not say which kind of figure: end it in .svg, .png or .pdf")
    refuse_existing(path, force=force, folder=False)
