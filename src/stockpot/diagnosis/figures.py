"""The figures of a diagnosis, as values: one function for each, from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot._figures import (
    Axis,
    Estimate,
    Heatmap,
    IntervalChart,
    LineChart,
    Point,
    Role,
    Rule,
    ScatterChart,
)
from stockpot._figures import Line as ChartLine
from stockpot.analysis.barrier import HIGH_BARRIER
from stockpot.analysis.pairs import advantage_correlation, approximation_correlation

if TYPE_CHECKING:
    from stockpot.analysis.barrier import ScoredLine
    from stockpot.analysis.diversity import Override
    from stockpot.analysis.landscape import Landscape, PlaneModel
    from stockpot.analysis.pairs import PairCorrelation, PairStudy
    from stockpot.diagnosis.parts import CalibrationRow, Contribution, LayerMap

Names = Mapping[str, str]
"""Path → the short name that figures show."""

_N_CELLS = 41  # along each side of the landscape
_ROLES: Mapping[str, Role] = {"base": "base", "run": "run", "soup": "soup", "midpoint": "soup"}


def landscape_heatmap(plane: Landscape, split: str, names: Names) -> Heatmap:
    """The loss over the plane, linear between the points that were scored, and the models in it."""
    from scipy.interpolate import LinearNDInterpolator

    _, first, second = (names[name] for name in plane.through)
    in_plane = [m for m in plane.marks if m.distance < 1e-6 and m.loss is not None]
    known = {(spot.x, spot.y): spot.loss for spot in plane.spots}
    known |= {(m.x, m.y): m.loss for m in in_plane if m.loss is not None}
    at, losses = np.array(list(known)), np.array(list(known.values()))
    (x0, y0), (x1, y1) = at.min(0).tolist(), at.max(0).tolist()
    # Rescaled to a unit square, since in a plane of tiny moves all points look alike to qhull.
    size = max(x1 - x0, y1 - y0)
    surface = LinearNDInterpolator((at - [x0, y0]) / size, losses)
    centres = (np.arange(_N_CELLS) + 0.5) / _N_CELLS
    grid = np.stack(np.meshgrid(centres * (x1 - x0), centres * (y1 - y0)), -1) / size
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in surface(grid)]
    middle = next(m for m in plane.marks if m.kind == "midpoint")
    ends = [_loss(m) for m in plane.marks if m.name in plane.through[1:]]
    lower = "lies lower than both" if plane.lower else "is not lower than both"
    return Heatmap(
        name="landscape",
        title="The landscape around the two best",
        explanation=(
            f"Cross-entropy on {split} in the plane of the base, {first} and {second}, in units of "
            "distance between weights; more colour is more loss. The average of the two "
            f"{lower}: {_loss(middle)} nat against {ends[0]} and {ends[1]}. Small hollow marks are "
            "other models, projected onto the plane."
        ),
        values=tuple(map(tuple, rows)),
        scale=Axis(name="loss (nat)", scale="log"),
        plane=(x0, x1, y0, y1),
        x=Axis(name="along the first model"),
        y=Axis(name="across"),
        marks=tuple(_mark(m, names, "their average") for m in plane.marks),
    )


def _loss(mark: PlaneModel) -> str:
    return "–" if mark.loss is None else f"{mark.loss:.4f}"


def _mark(mark: PlaneModel, names: Names, middle: str) -> Point:
    beside = mark.distance >= 1e-6
    note = "" if mark.loss is None else f"loss {mark.loss:.4g} nat"
    if beside:
        note += f"{', ' if note else ''}{mark.distance:.3g} from the plane"
    return Point(
        name=middle if mark.kind == "midpoint" else names[mark.name],
        x=mark.x,
        y=mark.y,
        role=_ROLES[mark.kind],
        labelled=not beside,
        hollow=beside,
        note=note,
    )


def lines_chart(lines: Sequence[ScoredLine], split: str, names: Names) -> LineChart | None:
    """The loss along every line but the steps of greedy."""
    lines = [line for line in lines if line.kind != "greedy path"]
    if not lines:
        return None
    worst = max(lines, key=lambda line: line.barrier)
    return LineChart(
        name="lines",
        title="Barriers between models",
        explanation=(
            f"Cross-entropy on {split} between two models. A barrier is how far the curve rises "
            "above the straight line between its ends; the highest here is "
            f"{worst.barrier:.3f} nat ({names[worst.a]} – {names[worst.b]})."
        ),
        x=Axis(name="share of the second model"),
        y=Axis(name="loss (nat)"),
        lines=tuple(
            ChartLine(name=f"{names[x.a]} – {names[x.b]}", x=x.alphas, y=x.losses) for x in lines
        ),
    )


def greedy_path_chart(lines: Sequence[ScoredLine], split: str) -> LineChart | None:
    """The loss on the way from the best model through every greedy soup."""
    steps = [line for line in lines if line.kind == "greedy path"]
    if not steps:
        return None
    x, y = [1.0], [steps[0].losses[0]]
    for n, step in enumerate(steps, 1):
        x += [n + alpha for alpha in step.alphas[1:]]
        y += step.losses[1:]
    return LineChart(
        name="greedy-path",
        title="Along the greedy path",
        explanation=(
            f"Cross-entropy on {split} on the way from the best model to the greedy soup of "
            f"{len(steps) + 1}; at whole numbers lie the soups. The highest barrier of a step is "
            f"{max(step.barrier for step in steps):.3f} nat."
        ),
        x=Axis(name="ingredients", whole=True),
        y=Axis(name="loss (nat)"),
        lines=(ChartLine(name="greedy soups", x=tuple(x), y=tuple(y), role="soup"),),
    )


def barrier_heatmap(
    pairs: Sequence[PairStudy], paths: Sequence[str], names: Names
) -> Heatmap | None:
    """The barrier between every two ingredients."""
    if len(pairs) < 3:
        return None
    known = {frozenset((p.a, p.b)): p.barrier for p in pairs}
    heights = [pair.barrier for pair in pairs]
    labels = tuple(names[path] for path in paths)
    return Heatmap(
        name="barriers",
        title="Barriers between every two",
        explanation=(
            f"Barriers in nat on the lines between {len(pairs)} pairs, over five points: "
            f"{statistics.median(heights):.3f} in the median, {max(heights):.3f} at most. Models "
            f"with barriers of {HIGH_BARRIER:g} nat or more do not lie in one basin."
        ),
        rows=labels,
        columns=labels,
        values=tuple(
            tuple(None if a == b else known.get(frozenset((a, b))) for b in paths) for a in paths
        ),
        scale=Axis(name="barrier (nat)"),
        least=HIGH_BARRIER,
    )


def angle_chart(
    pairs: Sequence[PairStudy],
    split: str,
    names: Names,
    hyperparameters: Mapping[str, Mapping[str, Any]],
) -> ScatterChart | None:
    """Angle against interpolation advantage, grouped by what differed between the two runs."""
    known = [pair for pair in pairs if pair.degrees is not None]
    if len(known) < 3:
        return None
    groups = pair_groups(known, hyperparameters)
    return ScatterChart(
        name="angles",
        title="Angle and advantage",
        explanation=(
            "Each mark is a pair of models: the angle between their moves from the base, and what "
            f"their average scores above the mean of the two, on {split}. "
            f"{_correlation(advantage_correlation(pairs))}"
        ),
        x=Axis(name="angle (degrees)"),
        y=Axis(name="advantage of the average"),
        points=tuple(
            Point(name=_pair(names, p), x=p.degrees or 0.0, y=p.advantage, group=group)
            for group, members in groups.items()
            for p in members
        ),
        rules=(_zero("y"),),
    )


def pair_groups(
    pairs: Sequence[PairStudy], hyperparameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[PairStudy]]:
    """Pairs by what differed; in random sweeps everything does, and the ratio of rates decides."""
    known = [set() if pair.differs is None else set(pair.differs) for pair in pairs]
    if any(pair.differs is None for pair in pairs):
        return {"pair": list(pairs)}
    kinds = {pair.differs or () for pair in pairs}
    groups: dict[str, list[PairStudy]] = {}
    if len(kinds) <= 4 and not (len(kinds) == 1 and "lr" in known[0]):
        for pair in pairs:
            name = ", ".join(pair.differs or ()) or "nothing"
            groups.setdefault(f"differ in {name}", []).append(pair)
        return groups
    names = ("lr within ×3", "lr within ×10", "lr further apart", "pair")
    for pair in pairs:
        rates = [hyperparameters[path].get("lr") for path in (pair.a, pair.b)]
        numbers = [r for r in rates if isinstance(r, int | float) and r > 0]
        ratio = max(numbers) / min(numbers) if len(numbers) == 2 else None
        position = 3 if ratio is None else (ratio > 3) + (ratio > 10)
        groups.setdefault(names[position], []).append(pair)
    return {name: groups[name] for name in names if name in groups}


def diversity_chart(
    pairs: Sequence[PairStudy], override: Override | None, split: str, names: Names
) -> ScatterChart | None:
    """How differently two models decide, against what averaging them gains."""
    if len(pairs) < 3:
        return None
    explanation = (
        f"Share of {split} examples on which exactly one of the two is right, against what their "
        "average scores above the mean of the two."
    )
    if override is not None:
        explanation += (
            f" Base and best model disagree on {100 * override.disagree:.1f} % of the test "
            f"examples; the model halfway between follows the base on {100 * override.first:.1f} "
            f"%, the best on {100 * override.second:.1f} %."
        )
    return ScatterChart(
        name="diversity",
        title="Diversity and advantage",
        explanation=explanation,
        x=Axis(name="prediction diversity"),
        y=Axis(name="advantage of the average"),
        points=tuple(
            Point(name=_pair(names, p), x=p.diversity.prediction, y=p.advantage, group="pair")
            for p in pairs
        ),
        rules=(_zero("y"),),
    )


def gap_chart(pairs: Sequence[PairStudy], names: Names) -> ScatterChart | None:
    """Soup minus ensemble: measured against its approximation."""
    gaps = [(pair, gap) for pair in pairs for gap in pair.gaps]
    if len(gaps) < 3:
        return None
    return ScatterChart(
        name="gaps",
        title="Soup minus ensemble",
        explanation=(
            "Loss of averaged weights less loss of averaged outputs, in nat: as measured, and as "
            "the curvature of the loss and the spread of the outputs let one expect. Below 0 the "
            f"soup is better. {_correlation(approximation_correlation(pairs))}"
        ),
        x=Axis(name="approximation (nat)"),
        y=Axis(name="measured (nat)"),
        points=tuple(
            Point(
                name=f"{_pair(names, pair)}, α = {gap.alpha:g}",
                x=gap.approximation,
                y=gap.measured,
                group=f"α = {gap.alpha:g}",
            )
            for pair, gap in gaps
        ),
        rules=(_zero("y"),),
        diagonal=True,
    )


def reliability_chart(
    rows: Sequence[CalibrationRow], names: Names, *, fitted_on: str, reported_on: str
) -> LineChart | None:
    """Accuracy against confidence of best, soups and ensemble, before temperature scaling."""
    if not rows:
        return None
    errors = "; ".join(
        f"{names[row.name]} {row.before.ece:.3f}, then {row.after.ece:.3f}" for row in rows
    )
    return LineChart(
        name="reliability",
        title="Confidence and accuracy",
        explanation=(
            f"On {reported_on}, in 15 bins of equal mass; on the diagonal, confidence can be "
            "believed. Expected calibration error before and after a temperature fitted on "
            f"{fitted_on}: {errors}."
        ),
        x=Axis(name="confidence", percent=True),
        y=Axis(name="accuracy", percent=True),
        lines=tuple(
            ChartLine(
                name=names[row.name],
                x=tuple(b.confidence for b in row.before.bins),
                y=tuple(b.accuracy for b in row.before.bins),
            )
            for row in rows
        ),
        diagonal=True,
    )


def growth_chart(points: Sequence[tuple[int, float, float | None]], split: str) -> LineChart | None:
    """Held-out score of uniform soups: (number of ingredients, mean, standard deviation)."""
    if len(points) < 2:
        return None
    return LineChart(
        name="growth",
        title="Score by number of ingredients",
        explanation=(
            f"Mean score on {split} of uniform soups over random orders of the ingredients; the "
            "band is one standard deviation."
        ),
        x=Axis(name="ingredients", whole=True),
        y=Axis(name="held-out score"),
        lines=(
            ChartLine(
                name="uniform soups",
                x=tuple(float(n) for n, _, _ in points),
                y=tuple(mean for _, mean, _ in points),
                low=tuple(mean - (sd or 0.0) for _, mean, sd in points),
                high=tuple(mean + (sd or 0.0) for _, mean, sd in points),
                role="soup",
            ),
        ),
    )


def contribution_chart(
    rows: Sequence[Contribution], split: str, names: Names, *, higher_is_better: bool
) -> IntervalChart | None:
    """What the uniform soup loses without each ingredient, the most useful one first."""
    rows = [row for row in rows if row.soup == "uniform"]
    if not rows:
        return None
    sign, helps = (-1, "right") if higher_is_better else (1, "left")
    return IntervalChart(
        name="leave-one-out",
        title="What each ingredient contributes",
        explanation=(
            f"Score on {split} of the uniform soup of all, less its score without one: to the "
            f"{helps} of 0 the ingredient helps. Lines are 95 % intervals."
        ),
        x=Axis(name="score lost without it"),
        rows=tuple(
            (names[row.path], Estimate(value=row.difference, low=row.low, high=row.high))
            for row in sorted(rows, key=lambda row: sign * row.difference)
        ),
        reference=0.0,
    )


def layer_distance_heatmap(
    layers: Sequence[LayerMap], paths: Sequence[str], names: Names
) -> Heatmap | None:
    """Relative distance from the base by layer and ingredient."""
    if not layers or not paths:
        return None
    return Heatmap(
        name="layer-distances",
        title="How far each layer moved",
        explanation=(
            "‖θ − θ₀‖ / ‖θ₀‖ of each layer and ingredient; stronger colour is farther from the "
            "base."
        ),
        rows=tuple(layer.layer for layer in layers),
        columns=tuple(names[path] for path in paths),
        values=tuple(tuple(layer.distances[path] for path in paths) for layer in layers),
        scale=Axis(name="relative distance"),
    )


def layer_angle_chart(layers: Sequence[LayerMap]) -> IntervalChart | None:
    """Angles between the moves of all pairs, by layer."""
    rows = tuple(
        (layer.layer, Estimate(value=layer.median, low=layer.low, high=layer.high))
        for layer in layers
        if layer.median is not None
    )
    if not rows:
        return None
    return IntervalChart(
        name="layer-angles",
        title="Angles by layer",
        explanation=(
            "Angle between the moves of two ingredients in one layer: median over all pairs, and "
            "the smallest and largest. At 90° they moved in unrelated directions."
        ),
        x=Axis(name="degrees"),
        rows=rows,
    )


def _zero(across: str) -> Rule:
    return Rule(name="0", value=0.0, across="y" if across == "y" else "x")


def _pair(names: Names, pair: PairStudy) -> str:
    return f"{names[pair.a]} – {names[pair.b]}"


def _correlation(found: PairCorrelation) -> str:
    if found.value is None:
        return "One of the two does not vary."
    text = f"Correlation over {found.n_pairs} pairs {found.value:+.2f}"
    if found.low is not None:
        text += f", 95 % interval over {found.n_runs} runs {found.low:+.2f} to {found.high:+.2f}"
    return text.replace("-", "−") + "."
