"""A made-up study of the shape that the demo writes; the tests of the page use it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from stockpot._figures import (
    AnyFigure,
    Axis,
    Estimate,
    Heatmap,
    IntervalChart,
    Point,
    Rule,
    ScatterChart,
)
from stockpot.evaluate.task import Score
from stockpot.recipes.result import (
    SoupSummary,
    Step,
    coefficients_heatmap,
    steps_chart,
    steps_table,
)
from stockpot.report.format1 import curve_chart, sparse_phases_chart
from stockpot.report.model import ModelRecord, Report, ScoreRecord, SplitGain

SHIFTS = ("noise", "blur", "rotation", "translation", "contrast", "occlusion", "unseen-fonts")


def score(value: float, n: int = 599) -> ScoreRecord:
    """A score with an interval of about the right width."""
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return ScoreRecord(value, max(0.0, value - half), min(1.0, value + half), n)


def scores(held_out: float, test: float, average: float) -> dict[str, ScoreRecord | None]:
    """Scores on every split; the shifts spread around their average."""
    spread = np.linspace(-0.1, 0.1, len(SHIFTS))
    values: dict[str, ScoreRecord | None] = {
        "held-out": score(held_out, 598),
        "test": score(test),
        "shift_average": score(average, 7 * 599),
    }
    for name, offset in zip(SHIFTS, spread, strict=True):
        values[name] = score(min(0.999, average + float(offset)))
    return values


def example(n_runs: int = 12) -> Report:
    """Twelve runs in a close cluster, a weak base, and soups above them."""
    random = np.random.default_rng(0)
    runs = []
    for i in range(n_runs):
        test, average = random.normal(0.972, 0.006), random.normal(0.835, 0.012)
        run = ModelRecord(
            f"run-{i:02d}",
            "run",
            scores(float(test) + 0.003, float(test), float(average)),
            f"runs/run-{i:02d}.safetensors",
            {
                "lr": float(f"{10 ** -random.uniform(3, 4):.2e}"),
                "epochs": int(random.integers(4, 17)),
                "label_smoothing": 0.1 if i % 2 else 0,
                "augment": ["none", "shift+rotate"][i % 2],
            },
        )
        runs.append(run)
    best = max(runs, key=lambda r: r.scores["held-out"].value)  # type: ignore[union-attr]
    share = {run.name: 0.25 for run in runs[:4]}
    models = [
        ModelRecord("base", "base", scores(0.76, 0.762, 0.74), "base.safetensors"),
        *runs,
        ModelRecord("best-single", "run", best.scores, best.path),
        ModelRecord("uniform", "soup", scores(0.976, 0.977, 0.851), "soups/uniform.safetensors",
                    coefficients={run.name: 1 / n_runs for run in runs}),
        ModelRecord("greedy", "soup", scores(0.982, 0.979, 0.848), "soups/greedy.safetensors",
                    coefficients=share),
        ModelRecord("wise-ft", "wise-ft", scores(0.978, 0.971, 0.860), "soups/wise-ft.safetensors",
                    coefficients={"base": 0.25, best.name: 0.75}),
        ModelRecord("ensemble", "ensemble", scores(0.981, 0.980, 0.853)),
    ]  # fmt: skip
    return Report(
        title="Handwriting",
        verdict=(
            "The greedy soup of 4 of 12 runs reads 97.9 % of the test digits.",
            "Its gain is within noise (McNemar p = 0.21); on the shifts it gains 1.3 points.",
        ),
        chosen_on="held-out",
        reported_on=("test", *SHIFTS),
        shifts=SHIFTS,
        headline=("base", "best-single", "uniform", "greedy", "wise-ft", "ensemble"),
        models=tuple(models),
        chosen="greedy",
        gains=(
            SplitGain("test", 0.004, -0.003, 0.011, 0.21),
            SplitGain("shift_average", 0.013, 0.004, 0.022),
        ),
        gains_over=best.name,
        figures=tuple(_figures(best, models[-3], runs)),
        provenance={"stockpot": "0.1.0", "torch": "2.13.0", "seed": "0", "wall time": "94 s"},
        commands=("stockpot demo -o stockpot-demo --seed 0",),
        notes=("The shifts are made from the test digits; the fonts of the last were never seen.",),
    )


def curve(end: ModelRecord) -> list[tuple[float, dict[str, ScoreRecord | None]]]:
    """Scores on the way from the base to `end`."""
    points = []
    for alpha in np.linspace(0, 1, 21):
        a = float(alpha)
        last_test, last_shift = end.scores["test"], end.scores["shift_average"]
        assert last_test is not None
        assert last_shift is not None
        test = 0.762 + (last_test.value - 0.762) * (1 - (1 - a) ** 3)
        shift = 0.74 + (last_shift.value - 0.74) * a + 0.28 * a * (1 - a) * (0.4 + 0.4 * a)
        points.append((round(a, 2), scores(test + 0.002, test, shift)))
    return points


def _figures(best: ModelRecord, greedy: ModelRecord, runs: list[ModelRecord]) -> list[AnyFigure]:
    kept = [Step(run.name, True, 0.978 + i / 1000) for i, run in enumerate(runs[:4])]
    noisy = [dataclasses.replace(s, p_value=0.21, reason="within noise") for s in kept[1:]]
    lost = [Step(run.name, False, score_at_most=0.979) for run in runs[4:]]
    steps = (kept[0], *noisy, *lost)
    summary = SoupSummary(
        recipe="greedy",
        selected=(),
        coefficients={},
        steps=steps,
        chosen_on="held-out",
        scores={"held-out": Score(0.98, 598, None, None, "accuracy", "held-out")},
    )
    curves = [
        curve_chart(
            curve(end),
            name=f"curve-{number}",
            title=f"From the base to {end.name}",
            x=Axis(name="α"),
            splits=("test", "shift_average", "held-out"),
            metric="accuracy",
            chosen=0.75,
            chosen_on="held-out",
        )
        for number, end in enumerate((best, greedy), 1)
    ]
    found = [
        *curves,
        steps_chart(summary, {}),
        coefficients_heatmap("learned", _mixing([run.name for run in runs]), {}),
        sparse_phases_chart(_phases(), split="test", metric="accuracy", dense=0.97),
        *_further(runs),
        steps_table(summary, {}),
    ]
    return [figure for figure in found if figure is not None]


def _further(runs: list[ModelRecord]) -> list[AnyFigure]:
    """Of the kinds that a diagnosis has: a plane, barriers, groups of pairs, contributions."""
    random = np.random.default_rng(2)
    names = tuple(f"experiment-with-a-long-name/{run.name}" for run in runs)
    grid = [[0.1 + ((x - 9) ** 2 + (y - 5) ** 2) / 60 for x in range(21)] for y in range(21)]
    marks = [("base", "base", 0, 0), (names[0], "run", 3, 0), (names[1], "run", 2.6, 1.4)]
    return [
        Heatmap(
            name="landscape", title="The landscape", values=tuple(map(tuple, grid)),
            scale=Axis(name="loss (nat)", scale="log"), plane=(-1.0, 4.0, -2.0, 3.0),
            x=Axis(name="along the first model"), y=Axis(name="at right angles to it"),
            marks=tuple(Point(name=n, role=r, x=float(x), y=float(y), labelled=True)
                        for n, r, x, y in marks),
        ),
        Heatmap(
            name="barriers", title="Barriers", rows=names, columns=names, least=0.1,
            values=tuple(tuple(None if a == b else 0.0 for b in names) for a in names),
            scale=Axis(name="barrier (nat)"),
        ),
        ScatterChart(
            name="angles", title="Angle and advantage", x=Axis(name="angle (degrees)"),
            y=Axis(name="advantage of the average"),
            points=tuple(
                Point(name=f"pair {i}", x=float(random.normal(60, 9)), y=float(random.normal(0, 1)),
                      group=f"differ in {('the learning rate and the seed', 'the seed')[i % 2]}")
                for i in range(40)
            ),
            rules=(Rule(name="0", value=0.0, across="y"),),
        ),
        IntervalChart(
            name="contributions", title="What each ingredient contributes",
            x=Axis(name="score lost without it"), reference=0.0,
            rows=tuple((name, Estimate(value=0.01 * i, low=0.01 * i - 0.02, high=0.01 * i + 0.02))
                       for i, name in enumerate(names)),
        ),
    ]  # fmt: skip


def _mixing(names: list[str]) -> dict[str, dict[str, float]]:
    """Shares by layer, one of them negative, one layer with a long name."""
    random = np.random.default_rng(1)
    groups = [f"block.{i}" for i in range(11)] + ["encoder.layer.11.output.dense"]
    shares = {}
    for group in groups:
        found = random.dirichlet(np.ones(len(names)))
        found[0], found[1] = found[0] + 0.05 + found[1], -0.05
        shares[group] = dict(zip(names, map(float, found), strict=True))
    return shares


def _phases() -> list[tuple[float, dict[str, ScoreRecord | None], ScoreRecord]]:
    return [
        (sparsity, {f"candidate-{i}": score(best - i / 100) for i in range(3)}, score(best + 0.004))
        for sparsity, best in ((0.536, 0.97), (0.785, 0.968), (0.9, 0.955))
    ]
