"""What all charts share: size, colours by meaning, axes, legend, and SVG for a page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Units are points of the drawing. At 400 wide, 12-point text is readable on a phone's 340 pixels,
# and two figures stand side by side on a desktop.
WIDTH, HEIGHT = 400.0, 340.0
FONT = 12.0
_LETTER = 0.58  # of the font's size: the browser sets a font of its own, which is not known here


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
_FIELDS = [field.name for field in dataclasses.fields(Palette)]
# Colours that no figure uses otherwise; `to_svg` puts the page's variables in their place, so that
# one drawing serves light and dark.
PAGE = Palette(**{name: f"#0102{i:02x}" for i, name in enumerate(_FIELDS, 1)})


class Drawing(NamedTuple):
    """A figure and, for each of its points, the id of the mark and the text that names it."""

    figure: Figure
    tips: dict[str, str]


# No letters, and most of them nothing that XML may hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def cut(name: str, most: int) -> str:
    """A name that is not too long; its end tells more than its beginning.

    >>> cut("encoder.layer.11.output.dense", 12), cut("head", 12)
    ('…utput.dense', 'head')
    """
    name = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(name.split()))
    return name if len(name) <= most else "…" + name[1 - most :]


def text_width(text: str, size: float = FONT) -> float:
    """About how wide `text` is, in points; wide letters, as of Chinese, count twice."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return _LETTER * size * (len(text) + wide)


def new_axes(palette: Palette, *, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, whose size `legend` or the caller sets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
    axes = figure.add_axes((0.16, 0.2, 0.81, 0.76), facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.muted)
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=FONT - 1)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    axes.grid(visible=True, color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def plain_labels(axes: Axes) -> None:
    """Names at ticks are text: no formulas, even with dollar signs."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
        label.set_fontsize(FONT - 1.5)


def range_with_room(values: Sequence[float], margin: float = 0.09) -> tuple[float, float]:
    """The range of `values` with room on both sides."""
    low, high = min(values), max(values)
    room = margin * (high - low) if high > low else 0.1 * abs(high) or 0.5
    return low - room, high + room


def legend(figure: Figure, axes: Axes, handles: Sequence[object], palette: Palette) -> None:
    """A legend below the axes, in as many columns as fit; the axes get the room that is left."""
    handles = list({handle.get_label(): handle for handle in handles}.values())  # type: ignore[attr-defined]
    for handle in handles:
        handle.set_label(cut(handle.get_label(), 40))  # type: ignore[attr-defined]
    widest = max((text_width(h.get_label(), FONT - 1) for h in handles), default=0) + 46  # type: ignore[attr-defined]
    n_columns = min(max(1, int((WIDTH - 8) // widest)), len(handles) or 1, 4)
    n_rows = -(-len(handles) // n_columns)
    below = 44 + 16.5 * n_rows
    height = max(HEIGHT, 250 + below)
    figure.set_figheight(height / 72)
    axes.set_position((58 / WIDTH, below / height, 1 - 70 / WIDTH, 1 - (below + 12) / height))
    if handles:
        drawn = figure.legend(
            handles=handles,
            loc="lower center",
            ncols=n_columns,
            frameon=False,
            fontsize=FONT - 1,
            labelcolor=palette.ink,
            handletextpad=0.4,
            columnspacing=1.4,
            labelspacing=0.4,
            borderaxespad=0.1,
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)


def css_variables(palette: Palette) -> str:
    """Declarations of the variables that a drawing made with `PAGE` uses.

    >>> css_variables(LIGHT).partition(";")[0]
    '--ink: #1d2327'
    """
    return "; ".join(f"--{name}: {getattr(palette, name)}" for name in _FIELDS)


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Of a style, those that are also attributes of their own: the page's policy forbids styles inside.
_ATTRIBUTES = {
    "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity",
    "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin",
    "stroke-miterlimit", "opacity", "text-anchor", "font-size",
}  # fmt: skip


def to_svg(drawing: Drawing, *, prefix: str, label: str) -> str:
    """The drawing, made with the palette `PAGE`, as an `<svg>` element for an HTML page.

    Every text and attribute is escaped by the writer of XML. Ids start with `prefix`, so that
    several drawings can stand in one page; the same drawing always gives the same text. `label`
    says for people who cannot see it what the figure shows.
    """
    root = ET.fromstring(_raw(drawing))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "group", "aria-label": label}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _plain_attributes(element, prefix, drawing.tips)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")


@contextlib.contextmanager
def _any_letter() -> Iterator[None]:
    """No complaint about letters that matplotlib's font lacks: the browser's own font has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _raw(drawing: Drawing) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # matplotlib has these two as global settings only; they are put back at once. Text stays text:
    # it can be searched and selected, and follows the reader's font.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stockpot"}), _any_letter():
        drawing.figure.savefig(
            buffer,
            format="svg",
            facecolor="none",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return buffer.getvalue()


def _plain_attributes(element: ET.Element, prefix: str, tips: Mapping[str, str]) -> None:
    """Styles as attributes, colours and ids of the page, and the names of points."""
    style = element.attrib.pop("style", "")
    for part in style.split(";"):
        key, _, value = (text.strip() for text in part.partition(":"))
        if key == "font":
            key, value = "font-size", value.split("px")[0].split()[-1] + "px"
        if key in _ATTRIBUTES:
            element.set(key, value)
    for key, value in element.attrib.items():
        if value.startswith("url(#"):
            element.set(key, f"url(#{prefix}-{value[5:]}")
        elif key in (f"{{{_XLINK}}}href", "href"):
            element.set(key, f"#{prefix}-{value[1:]}")
        elif value in _COLOURS:
            element.set(key, f"var(--{_COLOURS[value]})")
    name = element.get("id")
    if name is None:
        return
    element.set("id", f"{prefix}-{name}")
    if name in tips:
        lines = [_CONTROL.sub("\N{REPLACEMENT CHARACTER}", line) for line in tips[name].split("\n")]
        described = {"class": "pt", "role": "img", "aria-label": ": ".join(lines)}
        element.attrib |= {**described, "data-tip": "\n".join(lines)}
        # Only models are stops of the Tab key; the dozens of points of a curve would be a trap, and
        # stand in the table below the figure.
        if name.count("-") == 1:
            element.set("tabindex", "0")


_COLOURS = {getattr(PAGE, name): name for name in _FIELDS}
