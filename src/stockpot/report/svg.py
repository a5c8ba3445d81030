"""Figures as SVG that takes its colours from the page and names its points."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Mapping

from stockpot.report.canvas import DARK, LIGHT, Drawing, Palette

# Colours that no figure uses otherwise; `to_svg` puts the page's variables in their place, so that
# one drawing serves light and dark.
_FIELDS = [field.name for field in dataclasses.fields(Palette)]
PAGE = Palette(**{name: f"#0102{i:02x}" for i, name in enumerate(_FIELDS, 1)})


def css_variables(palette: Palette) -> str:
    """Declarations of the variables that a drawing made with `PAGE` uses.

    >>> from stockpot.report.canvas import LIGHT
    >>> css_variables(LIGHT).partition(";")[0]
    '--ink: #1d2327'
    """
    return "; ".join(f"--{name}: {getattr(palette, name)}" for name in _FIELDS)


def _raw(drawing: Drawing) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # matplotlib has these two as global settings only; they are put back at once. Text stays text:
    # it can be searched and selected, and follows the reader's font.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stockpot"}):
        drawing.figure.savefig(
            buffer,
            format="svg",
            facecolor="none",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return buffer.getvalue()


def _add_tips(svg: str, tips: Mapping[str, str]) -> str:
    for gid, tip in tips.items():
        text = html.escape(tip, quote=True)
        # Only models are stops of the Tab key; the dozens of points of a curve would be a trap, and
        # stand in the table below the figure.
        stop = ' tabindex="0"' if gid.count("-") == 1 else ""
        label = text.replace("\n", ": ")
        attributes = f'class="pt" role="img" aria-label="{label}" data-tip="{text}"{stop}'
        svg, n_found = re.subn(f'<g id="{gid}">', f'<g id="{gid}" {attributes}>', svg)
        if n_found != 1:
            raise AssertionError(f"the mark {gid} is in the drawing {n_found} times")
    return svg


def to_svg(drawing: Drawing, *, name: str, label: str) -> str:
    """The drawing, made with the palette `PAGE`, as an `<svg>` element for an HTML page.

    Ids start with `name`, so that several drawings can stand in one page; the same drawing always
    gives the same text. `label` says for people who cannot see it what the figure shows.
    """
    svg = _raw(drawing)
    svg = _add_tips(svg[svg.index("<svg") :], drawing.tips)
    for field in _FIELDS:
        svg = svg.replace(getattr(PAGE, field), f"var(--{field})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    if view is None:
        raise AssertionError("matplotlib wrote no viewBox")
    return (
        f'<svg {view.group()} role="group" aria-label="{html.escape(label, quote=True)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def standalone(svg: str) -> str:
    """The `<svg>` of a page as a file of its own, which follows the reader's light or dark."""
    style = (
        f"<style>svg {{ {css_variables(LIGHT)}; background: var(--paper); "
        "font-family: sans-serif }\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {css_variables(DARK)} }} }}</style>"
    )
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="600">{style}{rest}\n'
