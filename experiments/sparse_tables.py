"""The tables of docs/results/sparse.md, of what the experiment on sparse soups wrote as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.sparse_study import STUDIES, Study, quickly
from experiments.tables import t_interval

METRICS = ("test", "shift_average", "ece", "worst_class")
TITLES = {
    "test": "Test accuracy",
    "shift_average": "Mean accuracy over the shifts",
    "ece": "Expected calibration error on test (15 bins of equal mass; lower is better)",
    "worst_class": "Accuracy of the worst class of test",
}


def costs(study: Study) -> dict[str, tuple[int, int]]:
    """Model → epochs of retraining in all, and models that a prediction takes."""
    m, each = study.n_candidates, study.epochs * study.n_phases
    after = study.during_epochs - study.epochs
    between = study.during_epochs - each
    return {
        "dense": (0, 1),
        "soup, uniform": (m * each, 1),
        "soup, greedy": (m * each, 1),
        "best candidate": (m * each, 1),
        "mean candidate": (m * each, 1),
        "ensemble of candidates": (m * each, m),
        "IMP": (each, 1),
        f"IMP, {m}× the epochs": (m * each, 1),
        "IMP-RePrune": (m * each, 1),
        **{f"{k} with soup": (after + m * study.epochs, 1) for k in ("GMP", "DPF")},
        **{f"{k} without": (study.during_epochs, 1) for k in ("GMP", "DPF")},
        "BIMP with soup": (between + m * each, 1),
        "BIMP without": (between + m * each, 1),
    }


PAIRS = (
    ("soup, uniform", "best candidate"),
    ("soup, uniform", "mean candidate"),
    ("soup, uniform", "IMP"),
    ("soup, uniform", "IMP, 3× the epochs"),
    ("soup, uniform", "IMP-RePrune"),
    ("soup, uniform", "ensemble of candidates"),
    ("soup, greedy", "soup, uniform"),
    ("GMP with soup", "GMP without"),
    ("DPF with soup", "DPF without"),
    ("BIMP with soup", "BIMP without"),
)


def markdown(told: Mapping[str, Any]) -> str:
    """The tables of what was written as JSON, under each policy."""
    study = replace(STUDIES[told["study"]], epochs=told["epochs"])
    if told.get("quick"):
        study = quickly(study)
    parts = [
        (policy, _tables(study, found, len(told["seeds"])))
        for policy, found in told["measures"].items()
    ]
    if len(parts) == 1:
        return parts[0][1]
    return "\n\n".join(f"BatchNorm statistics {policy}:\n\n{text}" for policy, text in parts)


def _tables(
    study: Study, measured: Mapping[str, Mapping[str, Mapping[str, Any]]], n_seeds: int
) -> str:
    """One table for each measure, and one of differences paired by seed."""
    price = costs(study)
    found = {name: {float(s): v for s, v in by.items()} for name, by in measured.items()}
    sparsities = sorted({s for by in found.values() for s in by})
    head = (
        "| model | epochs | models | " + " | ".join(f"{100 * s:.1f} %" for s in sparsities) + " |"
    )
    rule = "|---|--:|--:|" + "--:|" * len(sparsities)
    parts = [
        f"{study.name}: mean over {n_seeds} seeds, with the 95 % t-interval of the mean "
        "(half its width), in percent."
    ]
    for metric in METRICS:
        rows = [
            f"| {name} | {price[name][0]} | {price[name][1]} | "
            + " | ".join(_cell([v[metric] for v in by.get(s, {}).values()]) for s in sparsities)
            + " |"
            for name, by in sorted(found.items(), key=lambda item: list(price).index(item[0]))
        ]
        parts += ["", f"{TITLES[metric]}:", "", head, rule, *rows]
    for metric in METRICS[:2]:
        parts += ["", f"{TITLES[metric]}, differences in points, paired by seed; (n): the 95 % "
                  "t-interval holds 0:", "", head.replace("| epochs | models ", ""),
                  rule.replace("--:|--:|", "", 1)]  # fmt: skip
        parts += [
            f"| {a} − {b} | "
            + " | ".join(
                _difference([
                    found[a][s][seed][metric] - found[b][s][seed][metric]
                    for seed in found[a].get(s, {}) if seed in found[b].get(s, {})
                ])
                for s in sparsities
            )
            + " |"
            for a, b in PAIRS
            if a in found and b in found
        ]  # fmt: skip
    return "\n".join(parts)


def _half(values: Sequence[float]) -> float | None:
    return None if len(values) < 2 else (t_interval(values)[1] - t_interval(values)[0]) / 2


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half = _half(values)
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if half is None else f"{mean} ± {100 * half:.2f}"


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half = _half(values)
    mean = statistics.fmean(values)
    if half is None:
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} ± {100 * half:.2f}" + (" (n)" if abs(mean) <= half else "")
