"""Write the figures of docs/wise-ft.md into docs/img.

python scripts/wise_ft_figures.py [wise_ft.json …]

draws the published curve of CLIP ViT-B/16 on logit axes (wise-ft-b16.svg), and, from files of
experiments/wise_ft.py, for each experiment in them the mean curve over sweeps to the best single
run (wise-ft-handwriting.svg, …) and, where it was measured, effective robustness.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot._figures import Axis, Chart, Line, LineChart, Point, Role, ScatterChart
from stockpot.evaluate.stats import t_interval
from stockpot.report.export import to_picture

OUT = Path(__file__).parents[1] / "docs" / "img"

B16 = (
    (0.0, 68.3, 58.1), (0.1, 72.9, 60.8), (0.2, 76.4, 62.5), (0.3, 78.9, 63.3), (0.4, 80.5, 63.5),
    (0.5, 81.7, 63.0), (0.6, 82.4, 61.9), (0.7, 82.6, 60.6), (0.8, 82.5, 58.9), (0.9, 82.1, 56.6),
    (1.0, 81.3, 53.8),
)  # fmt: skip
"""α, ImageNet, mean of five shifts, in percent: CLIP ViT-B/16 fine-tuned end to end.

Wortsman et al. 2021, arXiv 2109.01903: numbers of that paper, not of this project.
"""


def published() -> ScatterChart:
    """The curve of the paper, with its two ends and α = 0.5 named."""
    named: dict[float, tuple[str, Role]] = {
        0.0: ("zero-shot", "base"), 1.0: ("fine-tuned", "run"), 0.5: ("α = 0.5", "wise-ft"),
    }  # fmt: skip
    marks = tuple(
        Point(name=named[alpha][0], role=named[alpha][1], x=x / 100, y=y / 100, labelled=True)
        for alpha, x, y in B16
        if alpha in named
    )
    curve = [(x / 100, y / 100) for _, x, y in B16]
    return _scatter(
        "wise-ft-b16",
        "Published: ImageNet accuracy against the mean of five shifts, from zero-shot to tuned",
        ("ImageNet", "mean of five shifts"),
        marks,
        (_trace(curve),),
    )


def _trace(curve: Sequence[tuple[float, float]]) -> Line:
    x, y = zip(*curve, strict=True)
    return Line(name="all α", x=x, y=y, role="wise-ft")


def _scatter(
    name: str, title: str, axes: tuple[str, str], points: tuple[Point, ...], lines: tuple[Line, ...]
) -> ScatterChart:
    x, y = (Axis(name=f"{axis} (%)", percent=True, scale="logit") for axis in axes)
    return ScatterChart(name=name, title=title, x=x, y=y, points=points, lines=lines)


def mean_curve(name: str, sweeps: Sequence[Mapping[str, Any]]) -> LineChart:
    """Mean over sweeps of the curve to the best single run, with 95 % t-intervals."""
    curves = [one["tuned"]["best single"]["curve"] for one in sweeps]
    roles = dict(sweeps[0]["splits"])
    columns = [name for name, role in roles.items() if role == "test"]
    columns += ["shift_average"] if "shift" in roles.values() else []
    columns += [name for name, role in roles.items() if role == "held-out"]
    return LineChart(
        name=f"wise-ft-{name.partition(',')[0]}",  # behind it stands the BatchNorm policy
        title=f"{name}: scores from the base to the best single run, mean of {len(sweeps)} sweeps",
        x=Axis(name="α: 0 is the base, 1 is the best single run"),
        y=Axis(name="score (%)", percent=True),
        lines=tuple(_line(curves, column) for column in columns),
    )


def _line(curves: Sequence[Sequence[Mapping[str, Any]]], column: str) -> Line:
    values = [
        [p["scores"][column]["value"] for p in together] for together in zip(*curves, strict=True)
    ]
    bounds = [t_interval(v) for v in values] if len(curves) > 1 else None
    return Line(
        name=column.replace("_", " "),
        x=tuple(point["alpha"] for point in curves[0]),
        y=tuple(sum(v) / len(v) for v in values),
        low=None if bounds is None else tuple(b[0] for b in bounds),
        high=None if bounds is None else tuple(b[1] for b in bounds),
    )


def robustness(name: str, one: Mapping[str, Any]) -> ScatterChart:
    """Baselines with a line fitted to them, and the curve of one sweep."""
    found = one["robustness"]
    marks = [
        Point(name=f"{b['name']}, handwriting only", role="run",
              group="handwriting only", x=b["test"], y=b["shift"])
        for b in found["baselines"]
    ]  # fmt: skip
    roles: dict[str, Role] = {"zero-shot": "base", "fine-tuned": "soup", "chosen α": "wise-ft"}
    for key, role in roles.items():
        point = found["models"][key]
        label = key if key != "chosen α" else f"α = {one['tuned']['best single']['alpha']:g}"
        marks.append(
            Point(name=label, role=role, group=key, x=point["test"], y=point["shift"],
                  labelled=True)
        )  # fmt: skip
    curve = [
        (p["scores"]["test"]["value"], p["scores"]["shift_average"]["value"])
        for p in one["tuned"]["best single"]["curve"]
    ]
    ends = [choose(point.x for point in marks) for choose in (min, max)]
    fit = Line(
        name="fit to handwriting only",
        x=tuple(ends),
        y=tuple(_expit(found["slope"] * _logit(x) + found["intercept"]) for x in ends),
        role="muted",
    )
    title = f"{name}: test against shift average, with a line fitted to the baselines"
    return _scatter(
        f"wise-ft-{name}-robustness",
        title,
        ("test", "shift average"),
        tuple(marks),
        (_trace(curve), fit),
    )


def _logit(x: float) -> float:
    return math.log(x / (1 - x))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def write(chart: Chart) -> None:
    """Write one figure that follows the reader's light or dark."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{chart.name}.svg").write_text(to_picture(chart))


def main(files: Sequence[str] | None = None) -> int:
    """Draw everything that the given files hold."""
    write(published())
    given = sys.argv[1:] if files is None else files
    found = [one for file in given for one in json.loads(Path(file).read_text())]
    for name in dict.fromkeys(one["experiment"] for one in found):
        sweeps = [one for one in found if one["experiment"] == name]
        write(mean_curve(name, sweeps))
        if "robustness" in sweeps[0]:
            write(robustness(name, sweeps[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
