"""What all figures share: size, colours by meaning, axes and legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Units are points of the drawing. At 400 wide, 12-point text is readable on a phone's 340 pixels,
# and two figures stand side by side on a desktop.
_WIDTH, _HEIGHT = 400.0, 360.0
FONT = 12.0


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by meaning. Every kind of model also has a mark of its own, so colour is no code."""

    ink: str
    muted: str
    grid: str
    paper: str
    base: str
    run: str
    soup: str
    wise: str
    ensemble: str


# Okabe and Ito's colours, told apart with every common kind of colour blindness, darkened or
# lightened until each stands out from the paper by at least 3 to 1.
LIGHT = Palette(
    ink="#1d2327",
    muted="#5b666e",
    grid="#dfe4e8",
    paper="#ffffff",
    base="#1d2327",
    run="#6b7780",
    soup="#c04f00",
    wise="#0069a8",
    ensemble="#00805d",
)
DARK = Palette(
    ink="#e8ecef",
    muted="#a2aeb6",
    grid="#333c43",
    paper="#14191d",
    base="#e8ecef",
    run="#96a3ac",
    soup="#ff9248",
    wise="#5fb8f0",
    ensemble="#35cf9d",
)


class Drawing(NamedTuple):
    """A figure and, for each of its points, the id of the mark and the text that names it."""

    figure: Figure
    tips: dict[str, str]


def new_axes(
    palette: Palette, *, box: tuple[float, float, float, float] = (0.145, 0.235, 0.835, 0.74)
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes at `box`: left, bottom, width and height as shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72, facecolor="none")
    axes = figure.add_axes(box, facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.muted)
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=FONT - 1)
    axes.grid(visible=True, color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def range_with_room(values: Sequence[float], margin: float = 0.09) -> tuple[float, float]:
    """The range of `values` with room on both sides."""
    low, high = min(values), max(values)
    room = margin * (high - low) if high > low else 0.5
    return low - room, high + room


def legend(
    figure: Figure, handles: Sequence[object], palette: Palette, *, n_columns: int = 3
) -> None:
    """A legend below the axes."""
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=n_columns,
        frameon=False,
        fontsize=FONT - 1,
        labelcolor=palette.ink,
        handletextpad=0.4,
        columnspacing=1.6,
        borderaxespad=0.1,
    )
