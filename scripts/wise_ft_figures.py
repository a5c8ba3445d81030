"""Write the figures of docs/wise-ft.md into docs/img.

python scripts/wise_ft_figures.py [wise_ft.json …]

draws the published curve of CLIP ViT-B/16 on logit axes (wise-ft-b16.svg), and, from files of
experiments/wise_ft.py, for each experiment in them the mean curve over sweeps to the best single
run (wise-ft-handwriting.svg, …) and, where it was measured, effective robustness.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot.analysis.robustness import logit
from stockpot.evaluate.stats import t_interval
from stockpot.report.drawing import Drawing, draw_curve, draw_scatter
from stockpot.report.info import CurveInfo, Line, Point, ScatterInfo, Trace
from stockpot.report.svg import PAGE, standalone, to_svg

OUT = Path(__file__).parents[1] / "docs" / "img"

B16 = (
    (0.0, 68.3, 58.1), (0.1, 72.9, 60.8), (0.2, 76.4, 62.5), (0.3, 78.9, 63.3), (0.4, 80.5, 63.5),
    (0.5, 81.7, 63.0), (0.6, 82.4, 61.9), (0.7, 82.6, 60.6), (0.8, 82.5, 58.9), (0.9, 82.1, 56.6),
    (1.0, 81.3, 53.8),
)  # fmt: skip
"""α, ImageNet, mean of five shifts, in percent: CLIP ViT-B/16 fine-tuned end to end.

Wortsman et al. 2021, arXiv 2109.01903: numbers of that paper, not of this project.
"""


def published() -> ScatterInfo:
    """The curve of the paper, with its two ends and α = 0.5 named."""
    points = tuple((alpha, x / 100, y / 100) for alpha, x, y in B16)
    named = {0.0: ("zero-shot", "base"), 1.0: ("fine-tuned", "run"), 0.5: ("α = 0.5", "wise-ft")}
    marks = [
        Point(*named[alpha], x, y, None, None, named[alpha][0])
        for alpha, x, y in points
        if alpha in named
    ]
    trace = Trace("CLIP ViT-B/16", points)
    return ScatterInfo("ImageNet", "mean of five shifts", tuple(marks), (trace,), logit=True)


def mean_curve(sweeps: Sequence[Mapping[str, Any]]) -> CurveInfo:
    """Mean over sweeps of the curve to the best single run, with 95 % t-intervals."""
    curves = [one["tuned"]["best single"]["curve"] for one in sweeps]
    roles = dict(sweeps[0]["splits"])
    columns = [name for name, role in roles.items() if role == "test"]
    columns += ["shift_average"] if "shift" in roles.values() else []
    columns += [name for name, role in roles.items() if role == "held-out"]
    return CurveInfo(
        "the best single run", "α", tuple(_line(curves, column) for column in columns), None
    )


def _line(curves: Sequence[Sequence[Mapping[str, Any]]], column: str) -> Line:
    x = tuple(point["alpha"] for point in curves[0])
    values = [
        [p["scores"][column]["value"] for p in together] for together in zip(*curves, strict=True)
    ]
    means = tuple(sum(v) / len(v) for v in values)
    if len(curves) < 2:
        return Line(column, x, means, None, None)
    bounds = [t_interval(v) for v in values]
    return Line(column, x, means, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))


def robustness(one: Mapping[str, Any]) -> ScatterInfo:
    """Baselines and the curve of one sweep."""
    found = one["robustness"]
    models = found["models"]
    marks = [
        Point(f"width {b['width']}, {b['epochs']} epochs, handwriting only", "run", b["test"],
              b["shift"], None, None, None)
        for b in found["baselines"]
    ]  # fmt: skip
    for name, kind in (("zero-shot", "base"), ("fine-tuned", "soup"), ("chosen α", "wise-ft")):
        point = models[name]
        label = name if name != "chosen α" else f"α = {one['tuned']['best single']['alpha']:g}"
        marks.append(Point(name, kind, point["test"], point["shift"], None, None, label))
    curve = tuple(
        (p["alpha"], p["scores"]["test"]["value"], p["scores"]["shift_average"]["value"])
        for p in one["tuned"]["best single"]["curve"]
    )
    return ScatterInfo("test", "shift_average", tuple(marks), (Trace("curve", curve),), logit=True)


def draw_robustness(one: Mapping[str, Any]) -> Drawing:
    """The scatter, with the fit as a dashed line and marks named for what they are here."""
    info = robustness(one)
    drawing = draw_scatter(info, palette=PAGE)
    (axes,) = drawing.figure.axes
    found = one["robustness"]
    ends = [logit(choose(point.x for point in info.points)) for choose in (min, max)]
    axes.plot(
        ends, [found["slope"] * x + found["intercept"] for x in ends], "--", color=PAGE.run,
        scalex=False, scaley=False,
    )  # fmt: skip
    names = {"base": "zero-shot", "soup": "fine-tuned", "single run": "handwriting only"}
    for text in drawing.figure.legends[0].get_texts():
        text.set_text(names.get(text.get_text(), text.get_text()))
    return drawing


def write(name: str, drawing: Drawing, label: str) -> None:
    """Write one figure that follows the reader's light or dark."""
    OUT.mkdir(parents=True, exist_ok=True)
    svg = to_svg(drawing, name=name, label=label)
    (OUT / f"{name}.svg").write_text(standalone(svg))


def main(files: Sequence[str] | None = None) -> int:
    """Draw everything that the given files hold."""
    label = "Published: ImageNet accuracy against the mean of five shifts, from zero-shot to tuned"
    write("wise-ft-b16", draw_scatter(published(), palette=PAGE), label)
    given = sys.argv[1:] if files is None else files
    found = [one for file in given for one in json.loads(Path(file).read_text())]
    for name in dict.fromkeys(one["experiment"] for one in found):
        sweeps = [one for one in found if one["experiment"] == name]
        label = f"{name}: scores from the base to the best single run, mean of {len(sweeps)} sweeps"
        write(f"wise-ft-{name}", draw_curve(mean_curve(sweeps), palette=PAGE), label)
        if "robustness" in sweeps[0]:
            label = f"{name}: test against shift average, with a line fitted to the baselines"
            write(f"wise-ft-{name}-robustness", draw_robustness(sweeps[0]), label)
    return 0


if __name__ == "__main__":
    sys.exit(main())
