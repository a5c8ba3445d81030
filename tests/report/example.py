"""A made-up study of the shape that the demo writes; the tests of the page use it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from stockpot.report.records import (
    CurvePoint,
    CurveRecord,
    ModelRecord,
    PhaseRecord,
    Report,
    ScoreRecord,
    StepRecord,
)

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
    curves = []
    for name, end in (("best-single", best), ("greedy", models[-3])):
        points = []
        for alpha in np.linspace(0, 1, 21):
            a = float(alpha)
            last_test, last_shift = end.scores["test"], end.scores["shift_average"]
            assert last_test is not None
            assert last_shift is not None
            test = 0.762 + (last_test.value - 0.762) * (1 - (1 - a) ** 3)
            shift = 0.74 + (last_shift.value - 0.74) * a + 0.28 * a * (1 - a) * (0.4 + 0.4 * a)
            points.append(CurvePoint(round(a, 2), scores(test + 0.002, test, shift)))
        curves.append(CurveRecord(name, tuple(points), chosen=0.75))
    kept = [StepRecord(run.name, True, 0.978 + i / 1000) for i, run in enumerate(runs[:4])]
    noisy = [dataclasses.replace(s, p_value=0.21, reason="within noise") for s in kept[1:]]
    lost = [StepRecord(run.name, False, score_at_most=0.979) for run in runs[4:]]
    steps = {"greedy": (kept[0], *noisy, *lost)}
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
        curves=tuple(curves),
        steps=steps,
        provenance={"stockpot": "0.1.0", "torch": "2.13.0", "seed": "0", "wall time": "94 s"},
        commands=("stockpot demo -o stockpot-demo --seed 0",),
        mixing={"learned": _mixing([run.name for run in runs])},
        phases=_phases(),
        notes=("The shifts are made from the test digits; the fonts of the last were never seen.",),
    )


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


def _phases() -> tuple[PhaseRecord, ...]:
    return tuple(
        PhaseRecord(
            sparsity,
            {f"candidate-{i}": scores(best - i / 200, best - i / 100, 0.7) for i in range(3)},
            scores(best, best + 0.004, 0.71),
        )
        for sparsity, best in ((0.536, 0.97), (0.785, 0.968), (0.9, 0.955))
    )
