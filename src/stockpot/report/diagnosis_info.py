"""The numbers that each figure of a diagnosis shows, apart from their drawing.

All come from the JSON of `stockpot diagnose` as it is: nothing is computed here but what belongs
together and how it is called. Five kinds of figure show all of it: clouds of points, courses along
an axis, matrices, ranges, and a landscape.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

_Told = Mapping[str, Any]

COUNT = "ingredients"
"""Name of an axis that counts: its ticks are whole numbers."""


class CloudPoint(NamedTuple):
    """One point and what it is called."""

    name: str
    x: float
    y: float


class Group(NamedTuple):
    """Points of one colour and mark."""

    name: str
    points: tuple[CloudPoint, ...]


class Cloud(NamedTuple):
    """Points in groups; `diagonal` asks for the line on which both quantities are equal."""

    id: str
    title: str
    caption: str
    x_name: str
    y_name: str
    groups: tuple[Group, ...]
    diagonal: bool


class Course(NamedTuple):
    """Values along x, with a band where `low` and `high` are known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


class Courses(NamedTuple):
    """Several courses on common axes; `diagonal` as in `Cloud`."""

    id: str
    title: str
    caption: str
    x_name: str
    y_name: str
    courses: tuple[Course, ...]
    diagonal: bool


class Matrix(NamedTuple):
    """A value, or None, for each row and column, in `unit`; stronger colour is more."""

    id: str
    title: str
    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: str


class RangeRow(NamedTuple):
    """A value with the ends of its interval, where they are known."""

    name: str
    value: float
    low: float | None
    high: float | None


class Ranges(NamedTuple):
    """Values with intervals, one below the other; `zero` asks for a line at 0."""

    id: str
    title: str
    caption: str
    x_name: str
    rows: tuple[RangeRow, ...]
    zero: bool


class LandscapeMark(NamedTuple):
    """A model in the landscape, or its foot; `kind` is base, run, soup or midpoint."""

    name: str
    kind: str
    x: float
    y: float
    distance: float
    loss: float | None
    score: float | None


class LandscapeInfo(NamedTuple):
    """Scored points (x, y, loss, score) of a plane, and the models in it or near it."""

    id: str
    title: str
    caption: str
    spots: tuple[tuple[float, float, float, float], ...]
    marks: tuple[LandscapeMark, ...]


FigureInfo = Cloud | Courses | Matrix | Ranges | LandscapeInfo


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path by its file's name without suffix, where that tells them apart.

    >>> short_names(["runs/run-1.pt", "base.pt", "greedy of 2"])
    {'runs/run-1.pt': 'run-1', 'base.pt': 'base', 'greedy of 2': 'greedy of 2'}
    >>> short_names(["a/model.pt", "b/model.pt"])
    {'a/model.pt': 'a/model', 'b/model.pt': 'b/model'}
    """
    given = list(dict.fromkeys(paths))
    stems = {path: PurePath(path).stem if _is_path(path) else path for path in given}
    clashing = len(set(stems.values())) < len(given)
    if not clashing:
        return stems
    return {p: str(PurePath(p).with_suffix("")) if _is_path(p) else p for p in given}


def _is_path(text: str) -> bool:
    return "/" in text or PurePath(text).suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def _names(told: _Told) -> dict[str, str]:
    """Short names of everything that the diagnosis names."""
    given = [told["same_init"]["base"], *(i["path"] for i in told["same_init"]["ingredients"])]
    given += [name for line in told["barriers"]["lines"] for name in (line["a"], line["b"])]
    given += list(told["robustness"]["models"])
    if told["landscape"] is not None:
        given += [m["name"] for m in told["landscape"]["marks"] if m["kind"] != "midpoint"]
    return short_names(given)


def _pair(names: Mapping[str, str], row: _Told) -> str:
    return f"{names[row['a']]} – {names[row['b']]}"


def get_diagnosis_infos(told: _Told) -> list[FigureInfo]:
    """Every figure that the diagnosis has numbers for, in the order in which a page shows them.

    Args:
        told: the JSON of a diagnosis.
    """
    makers = (
        get_landscape_info, get_lines_info, get_greedy_path_info, get_barrier_matrix_info,
        get_angle_info,
        get_diversity_info, get_gap_info, get_reliability_info, get_growth_info, get_worth_info,
        get_layer_distance_info, get_layer_angle_info,
    )  # fmt: skip
    found = (make(told) for make in makers)
    return [info for info in found if info is not None]


def get_landscape_info(told: _Told) -> LandscapeInfo | None:
    """The plane through the base and the two best ingredients."""
    plane = told["landscape"]
    if plane is None:
        return None
    names = _names(told)
    _, first, second = (names[name] for name in plane["through"])
    marks = tuple(
        LandscapeMark(
            f"average of {first} and {second}" if m["kind"] == "midpoint" else names[m["name"]],
            m["kind"], m["x"], m["y"], m["distance"], m["loss"], m["score"],
        )
        for m in plane["marks"]
    )  # fmt: skip
    middle = next(m for m in marks if m.kind == "midpoint")
    ends = [m for m in marks if m.name in (first, second)]
    lower = "lies lower than both" if plane["soup_lower_than_both"] else "is not lower than both"
    caption = (
        f"Cross-entropy on {told['chosen_on']} in the plane of the base, {first} and {second}, "
        f"in units of distance between weights; more colour is more loss. The average of the two "
        f"{lower}: {middle.loss:.4f} nat against {ends[0].loss:.4f} and {ends[1].loss:.4f}. Small "
        "hollow marks are other models, at the foot of their distance from the plane."
    )
    spots = tuple((s["x"], s["y"], s["loss"], s["score"]) for s in plane["spots"])
    return LandscapeInfo("landscape", "The landscape around the two best", caption, spots, marks)


def get_lines_info(told: _Told) -> Courses | None:
    """The loss along every line."""
    names = _names(told)
    lines = [line for line in told["barriers"]["lines"] if line["kind"] != "greedy path"]
    if not lines:
        return None
    worst = max(lines, key=lambda line: line["barrier"])
    caption = (
        f"Cross-entropy on {told['chosen_on']} between two models. A barrier is how far the curve "
        f"rises above the straight line between its ends; the highest here is "
        f"{worst['barrier']:.3f} nat ({_pair(names, worst)})."
    )
    courses = tuple(Course(_pair(names, x), tuple(x["alphas"]), tuple(x["losses"])) for x in lines)
    return Courses(
        "lines", "Barriers on the way", caption, "share of the second model", "loss (nat)",
        courses, False,
    )  # fmt: skip


def get_greedy_path_info(told: _Told) -> Courses | None:
    """The loss on the way from the best model through every greedy soup."""
    steps = [line for line in told["barriers"]["lines"] if line["kind"] == "greedy path"]
    if not steps:
        return None
    x, y = [1.0], [steps[0]["losses"][0]]
    for n, step in enumerate(steps, 1):
        x += [n + alpha for alpha in step["alphas"][1:]]
        y += step["losses"][1:]
    caption = (
        f"Cross-entropy on {told['chosen_on']} on the way from the best model to the greedy soup "
        f"of {len(steps) + 1}; at whole numbers lie the soups. The highest barrier of a step is "
        f"{max(step['barrier'] for step in steps):.3f} nat."
    )
    return Courses(
        "greedy-path", "Along the greedy path", caption, COUNT, "loss (nat)",
        (Course("greedy soups", tuple(x), tuple(y)),), False,
    )  # fmt: skip


def get_barrier_matrix_info(told: _Told) -> Matrix | None:
    """The barrier between every two ingredients."""
    pairs = told["barriers"]["pairs"]
    if len(pairs) < 3:
        return None
    names = _names(told)
    paths = [one["path"] for one in told["same_init"]["ingredients"]]
    known = {frozenset((p["a"], p["b"])): p["barrier"] for p in pairs}
    values = tuple(
        tuple(None if a == b else known.get(frozenset((a, b))) for b in paths) for a in paths
    )
    heights = [pair["barrier"] for pair in pairs]
    caption = (
        f"Barriers in nat on the lines between {len(pairs)} pairs, over five points: "
        f"{statistics.median(heights):.3f} in the median, {max(heights):.3f} at most. Models with "
        "barriers of 0.1 nat or more do not lie in one basin."
    )
    labels = tuple(names[path] for path in paths)
    return Matrix("barriers", "Barriers between every two", caption, labels, labels, values, "nat")


def get_angle_info(told: _Told) -> Cloud | None:
    """Angle against interpolation advantage, coloured by what differed between the two runs."""
    pairs = [pair for pair in told["angles"]["pairs"] if pair["degrees"] is not None]
    if len(pairs) < 3:
        return None
    names = _names(told)
    groups = _groups(pairs, told["ingredients"]["hyperparameters"])
    caption = (
        "Each mark is a pair of models: the angle between their moves from the base, and what "
        "their average scores above the mean of the two, on "
        f"{told['chosen_on']}. {_correlated(told['angles']['correlation'])}"
    )
    return Cloud(
        "angles", "Angle and advantage", caption, "angle (degrees)", "advantage of the average",
        tuple(
            Group(
                name,
                tuple(CloudPoint(_pair(names, p), p["degrees"], p["advantage"]) for p in members),
            )
            for name, members in groups.items()
        ),
        False,
    )  # fmt: skip


def _groups(pairs: Sequence[_Told], hyperparameters: _Told) -> dict[str, list[_Told]]:
    """Pairs by what differed; in random sweeps everything does, and the ratio of rates decides."""
    if any(pair["differs"] is None for pair in pairs):
        return {"pair": list(pairs)}
    kinds = {tuple(pair["differs"]) for pair in pairs}
    groups: dict[str, list[_Told]] = {}
    if len(kinds) <= 4 and not (len(kinds) == 1 and "lr" in next(iter(kinds))):
        for pair in pairs:
            name = ", ".join(pair["differs"]) or "nothing"
            groups.setdefault(f"differ in {name}", []).append(pair)
        return groups
    names = ("lr within ×3", "lr within ×10", "lr further apart", "pair")
    for pair in pairs:
        rates = [hyperparameters[pair[end]].get("lr") for end in ("a", "b")]
        if any(not isinstance(rate, int | float) or rate <= 0 for rate in rates):
            groups.setdefault(names[3], []).append(pair)
            continue
        ratio = max(rates) / min(rates)
        groups.setdefault(names[(ratio > 3) + (ratio > 10)], []).append(pair)
    return {name: groups[name] for name in names if name in groups}


def _correlated(told: _Told) -> str:
    if told["value"] is None:
        return "One of the two does not vary."
    text = f"Correlation over {told['n_pairs']} pairs {told['value']:+.2f}"
    if told["low"] is not None:
        text += f", 95 % interval over {told['n_runs']} runs {told['low']:+.2f} to "
        text += f"{told['high']:+.2f}"
    return text.replace("-", "−") + "."


def get_diversity_info(told: _Told) -> Cloud | None:
    """How differently two models decide, against what averaging them gains."""
    pairs = told["diversity"]["pairs"]
    if len(pairs) < 3:
        return None
    names = _names(told)
    gained = {(p["a"], p["b"]): p["advantage"] for p in told["angles"]["pairs"]}
    points = tuple(
        CloudPoint(_pair(names, p), p["prediction"], gained[p["a"], p["b"]]) for p in pairs
    )
    caption = (
        f"Share of {told['chosen_on']} examples on which exactly one of the two is right, against "
        "what their average scores above the mean of the two."
    )
    override = told["diversity"]["override"]
    if override is not None:
        caption += (
            f" Base and best model disagree on {100 * override['disagree']:.1f} % of the test "
            f"examples; the model halfway between follows the base on "
            f"{100 * override['first']:.1f} %, the best on {100 * override['second']:.1f} %."
        )
    return Cloud(
        "diversity", "Diversity and advantage", caption, "prediction diversity",
        "advantage of the average", (Group("pair", points),), False,
    )  # fmt: skip


def get_gap_info(told: _Told) -> Cloud | None:
    """Soup minus ensemble: measured against its approximation."""
    points = told["soup_vs_ensemble"]["points"]
    if len(points) < 3:
        return None
    names = _names(told)
    groups: dict[str, list[CloudPoint]] = {}
    for row in points:
        point = CloudPoint(
            f"{_pair(names, row)}, α = {row['alpha']:g}", row["approximation"], row["measured"]
        )
        groups.setdefault(f"α = {row['alpha']:g}", []).append(point)
    caption = (
        "Loss of averaged weights less loss of averaged outputs, in nat: as measured, and as the "
        "curvature of the loss and the spread of the outputs let one expect. Below 0 the soup is "
        f"better. {_correlated(told['soup_vs_ensemble']['correlation'])}"
    )
    return Cloud(
        "gaps", "Soup minus ensemble", caption, "approximation (nat)", "measured (nat)",
        tuple(Group(name, tuple(found)) for name, found in groups.items()), True,
    )  # fmt: skip


def get_reliability_info(told: _Told) -> Courses | None:
    """Accuracy against confidence of best, soups and ensemble, before temperature scaling."""
    rows = told["calibration"]["models"]
    if not rows:
        return None
    names = short_names(row["name"] for row in rows)
    courses = tuple(
        Course(
            names[row["name"]],
            tuple(b["confidence"] for b in row["before"]["bins"]),
            tuple(b["accuracy"] for b in row["before"]["bins"]),
        )
        for row in rows
    )
    said = "; ".join(
        f"{names[row['name']]} {row['before']['ece']:.3f}, then {row['after']['ece']:.3f}"
        for row in rows
    )
    caption = (
        f"On {told['calibration']['reported_on']}, in 15 bins of equal mass; on the diagonal, "
        f"confidence can be believed. Expected calibration error before and after a temperature "
        f"fitted on {told['calibration']['fitted_on']}: {said}."
    )
    return Courses(
        "reliability", "Confidence and accuracy", caption, "confidence", "accuracy", courses, True
    )


def get_growth_info(told: _Told) -> Courses | None:
    """Held-out score of uniform soups against the number of their ingredients."""
    points = told["ingredients"]["growth"]
    if len(points) < 2:
        return None
    x = tuple(float(point["n_ingredients"]) for point in points)
    y = tuple(point["mean"] for point in points)
    spread = [point["sd"] or 0.0 for point in points]
    course = Course(
        "uniform soups", x, y,
        tuple(m - s for m, s in zip(y, spread, strict=True)),
        tuple(m + s for m, s in zip(y, spread, strict=True)),
    )  # fmt: skip
    caption = (
        f"Mean score on {told['chosen_on']} of uniform soups over random orders of the "
        "ingredients; the band is one standard deviation."
    )
    return Courses(
        "growth", "Score by number of ingredients", caption, COUNT, "held-out score",
        (course,), False,
    )  # fmt: skip


def get_worth_info(told: _Told) -> Ranges | None:
    """What the uniform soup loses without each ingredient."""
    rows = [row for row in told["ingredients"]["leave_one_out"] if row["soup"] == "uniform"]
    if not rows:
        return None
    names = _names(told)
    found = [RangeRow(names[r["path"]], r["difference"], r["low"], r["high"]) for r in rows]
    sign = 1 if told["direction"] == "min" else -1
    helps = "right" if told["direction"] == "max" else "left"
    caption = (
        f"Score on {told['chosen_on']} of the uniform soup of all, less its score without one: to "
        f"the {helps} of 0 the ingredient helps. Lines are 95 % intervals."
    )
    return Ranges(
        "worth", "What each ingredient is worth", caption, "score lost without it",
        tuple(sorted(found, key=lambda row: sign * row.value)), True,
    )  # fmt: skip


def get_layer_distance_info(told: _Told) -> Matrix | None:
    """Relative distance from the base by layer and ingredient."""
    layers = told["angles"]["layers"]
    paths = [one["path"] for one in told["same_init"]["ingredients"]]
    if not layers or not paths:
        return None
    names = _names(told)
    values = tuple(tuple(layer["distances"][path] for path in paths) for layer in layers)
    return Matrix(
        "layer-distances", "How far each layer moved",
        "‖θ − θ₀‖ / ‖θ₀‖ of each layer and ingredient; stronger colour is farther from the base.",
        tuple(layer["layer"] for layer in layers), tuple(names[path] for path in paths), values, "",
    )  # fmt: skip


def get_layer_angle_info(told: _Told) -> Ranges | None:
    """Angles between the moves of all pairs, by layer."""
    rows = tuple(
        RangeRow(layer["layer"], layer["median"], layer["low"], layer["high"])
        for layer in told["angles"]["layers"]
        if layer["median"] is not None
    )
    if not rows:
        return None
    return Ranges(
        "layer-angles", "Angles by layer",
        "Angle between the moves of two ingredients in one layer: median over all pairs, and the "
        "smallest and largest. At 90° they moved in unrelated directions.",
        "degrees", rows, False,
    )  # fmt: skip
