"""A small diagnosis of the shape that `stockpot diagnose` tells; the tests of figures use it."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from stockpot.analysis.calibration import calibration

BASE = "lab/base.safetensors"
RUNS = [f"lab/run-{i:02d}.safetensors" for i in range(6)]


def told() -> dict[str, Any]:
    """Six runs around a bowl; every number made up, every key as it is."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 2)) + np.array([3.0, 1.5])
    pairs = list(combinations(range(6), 2))

    def row(i: int, j: int) -> dict[str, Any]:
        return {"a": RUNS[i], "b": RUNS[j]}

    logits = rng.normal(size=(120, 3)) * 2
    targets = rng.integers(0, 3, 120)
    before, after = (calibration(logits, targets, beta=b) for b in (1.0, 0.5))

    def loss(x: float, y: float) -> float:
        return 0.1 + 0.05 * ((x - 3) ** 2 + (y - 1.5) ** 2)

    grid = [(float(x), float(y)) for x in np.linspace(-1, 5, 5) for y in np.linspace(-2, 4, 5)]
    alphas = [round(0.1 * i, 1) for i in range(11)]
    score = {"value": 0.9, "low": 0.87, "high": 0.93, "n": 500, "metric": "accuracy"}
    correlation = {"value": 0.5, "low": 0.1, "high": 0.8, "n_pairs": 15, "n_runs": 6}
    mark = {"x": 0.0, "y": 0.0, "distance": 0.0, "loss": loss(0, 0), "score": 0.7}
    models = {name: {"kind": "run", "members": [], "scores": {"val": score, "test": score}}
              for name in RUNS}  # fmt: skip
    models |= {
        BASE: {"kind": "base", "members": [], "scores": {"val": score, "test": score}},
        "uniform": {"kind": "soup", "members": RUNS, "scores": {"val": score, "test": score}},
    }
    return {
        "verdict": {"answer": "yes", "sentences": ["Yes.", "All 6 seem to come from the base."]},
        "same_init": {
            "base": BASE,
            "tensors": 4,
            "ingredients": [{"path": path, "distance": 0.1} for path in RUNS],
        },
        "angles": {
            "pairs": [
                {**row(i, j), "degrees": 40.0 + 3 * n, "advantage": 0.001 * (n - 4),
                 "advantage_loss": 0.01, "differs": ["lr"] if n % 2 else ["lr", "seed"]}
                for n, (i, j) in enumerate(pairs)
            ],
            "all": [],
            "correlation": correlation,
            "correlation_loss": correlation,
            "layers": [
                {"layer": name, "distances": {path: 0.1 * k for k, path in enumerate(RUNS)},
                 "low": 30.0, "median": 50.0, "high": 80.0}
                for name in ("0", "2")
            ],
        },
        "barriers": {
            "lines": [
                {"a": RUNS[0], "b": RUNS[1], "kind": "runs", "alphas": alphas,
                 "losses": [0.2 + a * (1 - a) for a in alphas], "scores": [0.9] * 11,
                 "barrier": 0.25, "at": 0.5},
                {"a": BASE, "b": "uniform", "kind": "base", "alphas": alphas,
                 "losses": [1 - 0.8 * a for a in alphas], "scores": [0.9] * 11,
                 "barrier": 0.0, "at": 0.0},
                {"a": RUNS[0], "b": "greedy of 2", "kind": "greedy path",
                 "alphas": [0.0, 0.5, 1.0], "losses": [0.2, 0.18, 0.19], "scores": [0.9] * 3,
                 "barrier": 0.0, "at": 0.0},
            ],
            "pairs": [{**row(i, j), "barrier": 0.01 * (i + j)} for i, j in pairs],
        },
        "landscape": {
            "through": [BASE, RUNS[0], RUNS[1]],
            "soup_lower_than_both": True,
            "marks": [
                {**mark, "name": BASE, "kind": "base"},
                {**mark, "name": RUNS[0], "kind": "run", "x": 4.0, "loss": loss(4, 0)},
                {**mark, "name": RUNS[1], "kind": "run", "x": 2.0, "y": 3.0, "loss": loss(2, 3)},
                {**mark, "name": "midpoint of a and b", "kind": "midpoint", "x": 3.0, "y": 1.5,
                 "loss": loss(3, 1.5)},
                *({**mark, "name": RUNS[k], "kind": "run", "x": float(places[k, 0]),
                   "y": float(places[k, 1]), "distance": 0.8} for k in range(2, 6)),
                {**mark, "name": "uniform", "kind": "soup", "x": 2.9, "y": 1.4, "distance": 0.2},
            ],
            "spots": [{"x": x, "y": y, "loss": loss(x, y), "score": 0.8} for x, y in grid],
        },
        "diversity": {
            "pairs": [{**row(i, j), "prediction": 0.02 * (i + 1), "kappa": 0.1, "kl": 0.1,
                       "cka": 0.1, "margin_f": 3.0, "margin_g": 2.0, "n": 500} for i, j in pairs],
            "override": {"disagree": 0.25, "first": 0.05, "second": 0.18, "neither": 0.02,
                         "n": 500},
        },
        "calibration": {
            "fitted_on": "val",
            "reported_on": "test",
            "models": [
                {"name": name, "kind": kind, "before": asdict(before), "after": asdict(after)}
                for name, kind in ((RUNS[0], "run"), ("uniform", "soup"), ("ensemble", "ensemble"))
            ],
        },
        "robustness": {"best_single": RUNS[0], "greedy_kept": RUNS[:2], "models": models,
                       "gains": {}},
        "soup_vs_ensemble": {
            "step": 0.25,
            "points": [
                {**row(i, j), "alpha": a, "beta": 1.0, "soup": 0.2, "ensemble": 0.21,
                 "measured": 0.001 * (i - j), "curvature": 0.0, "spread": 0.0,
                 "approximation": 0.0012 * (i - j)}
                for i, j in pairs for a in (0.25, 0.5, 0.75)
            ],
            "correlation": correlation,
        },
        "ingredients": {
            "leave_one_out": [
                {"path": path, "soup": "uniform", "difference": 0.002 * (k - 2),
                 "low": 0.002 * (k - 3), "high": 0.002 * (k - 1)} for k, path in enumerate(RUNS)
            ],
            "growth": [{"n_ingredients": n, "mean": 0.9 + 0.01 * n, "sd": 0.01 if n < 6 else None}
                       for n in range(1, 7)],
            "hyperparameters": {path: {"lr": 10 ** -(2 + k / 3)} for k, path in enumerate(RUNS)},
        },
        "budget": {"given": None, "planned": 200, "made": 190, "parts": {}},
        "chosen_on": "val",
        "direction": "max",
        "notes": [],
    }  # fmt: skip
