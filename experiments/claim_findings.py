"""What a claim is, and the numbers, one for each sweep, by which it is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiments.tables import less

from experiments import questions, small_t5, sparse_lengths, tables

DATA = Path(__file__).parents[1] / "docs" / "results" / "data"
Found = Any
"""What an experiment wrote."""


@dataclass(frozen=True)
class Finding:
    """One number for each sweep of one published data set.

    Attributes:
        setting: what was trained, for people.
        data: name of the file of `docs/results/data`, without its ending.
        values: of the data, one for each sweep; positive where the claim holds.
        unit: `"points"` of a hundred, `"nat"`, or `"r"` of a correlation.
    """

    setting: str
    data: str
    values: Callable[[Found], Sequence[float]]
    unit: str = "points"

    def cell(self, data: Path = DATA) -> tables.Cell:
        """Mean over sweeps, and its interval."""
        found = json.loads((data / f"{self.data}.json").read_text())["found"]
        return tables.over_seeds(list(self.values(found)))


@dataclass(frozen=True)
class Claim:
    """What a paper says, its number, and what was found here; nothing where it was not tested."""

    name: str
    paper: str
    text: str
    theirs: str
    findings: tuple[Finding, ...] = ()
    untested: str = ""


# ── numbers of sweeps ─────────────────────────────────────────────────────────────────────────────


def between(model: str, other: str, split: str) -> Callable[[Found], list[float]]:
    """`model` minus `other` on one split, of tables with a row for each model."""

    def values(found: Found) -> list[float]:
        rows = [{row["model"]: row["scores"] for row in sweep["rows"]} for sweep in found]
        return [of[model][split]["value"] - of[other][split]["value"] for of in rows]

    return values


def between_demos(model: str, other: str, split: str) -> Callable[[Found], list[float]]:
    """The same of the demo's runs over many seeds."""
    return lambda found: [
        demo["scores"][model][split]["value"] - demo["scores"][other][split]["value"]
        for demo in found["demos"]
    ]


def on_the_line(split: str) -> Callable[[Found], list[float]]:
    """α = 0.5 minus the fine-tuned end, of WiSE-FT's curves."""

    def values(found: Found) -> list[float]:
        out = []
        for sweep in found:
            curve = {
                round(point["alpha"], 2): point["scores"][split]["value"]
                for point in sweep["tuned"]["best single"]["curve"]
            }
            out.append(curve[0.5] - curve[1.0])
        return out

    return values


def sparse(model: str, other: str, phase: str) -> Callable[[Found], list[float]]:
    """`model` minus `other` on test in one phase of sparse soups, with averaged statistics."""

    def values(found: Found) -> list[float]:
        by = found["measures"]["averaged"]
        return [
            by[model][phase][seed]["test"] - by[other][phase][seed]["test"]
            for seed in sorted(by[model][phase])
        ]

    return values


def below_in_loss(model: str, other: str) -> Callable[[Found], list[float]]:
    """How much less `model` loses on test than `other`, along a run."""
    return lambda found: [by[other]["test"] - by[model]["test"] for by in found.values()]


def by_zoo(model: str, other: str) -> Callable[[Found], list[float]]:
    """`model` minus `other` on test, of several pretrained networks."""
    return lambda found: [
        one["scores"][model]["test"] - one["scores"][other]["test"] for one in found.values()
    ]


def angle_and_gain(varied: str) -> Callable[[Found], list[float]]:
    """Correlation, over pairs of runs, of the angle and the gain of their mean in loss."""

    def values(found: Found) -> list[float]:
        return [
            float(
                np.corrcoef(
                    [pair["degrees"] for pair in by[varied]],
                    [pair["advantage_loss"] for pair in by[varied]],
                )[0, 1]
            )
            for by in found.values()
        ]

    return values


def half_way(split: str) -> Callable[[Found], list[float]]:
    """α = 0.5 minus the fine-tuned end, mean over all runs of a sweep."""
    return lambda found: less(
        questions.at_alpha(found, split, "0.5"), questions.at_alpha(found, split, "1.0")
    )


def by_training(model: str, other: str, split: str) -> Callable[[Found], list[float]]:
    """One way to stay near the base minus another."""
    return lambda found: [
        seed["training"][model][split] - seed["training"][other][split] for seed in found
    ]


def by_t5(model: str, column: str) -> Callable[[Found], list[float]]:
    """`model` minus the best single run, of the small T5."""
    return lambda found: small_t5.gains(found, model, column)


def by_varied(varied: str, model: str, other: str, split: str) -> Callable[[Found], list[float]]:
    """`model` minus `other` of the sweep in which so much varies."""
    return lambda found: questions.by_varied(found, varied, model, other, split)


def members(split: str) -> Callable[[Found], list[float]]:
    """The soup of twelve runs minus that of two of them."""
    return lambda found: less(
        questions.with_members(found, 12, "soup", split),
        questions.with_members(found, 2, "soup", split),
    )


def calibrated(change: str, better: str, worse: str) -> Callable[[Found], list[float]]:
    """Calibration error of one model minus that of another."""
    return lambda found: less(
        *(questions.under(found, model, change, "ece") for model in (worse, better))
    )


def above_the_line(model: str) -> Callable[[Found], list[float]]:
    """Effective robustness of a point of WiSE-FT's curves."""
    return lambda found: [sweep["robustness"]["models"][model]["rho"] for sweep in found]


def by_length(
    model: str, other: str, epochs: int, sparsity: float, *, column: str = "test"
) -> Callable[[Found], list[float]]:
    """`model` minus `other` in one column, of sparse soups with so much retraining."""
    return lambda found: less(
        *(sparse_lengths.values(found, epochs, sparsity, m, column) for m in (model, other))
    )


def safer(what: str, sparsity: float) -> Callable[[Found], list[float]]:
    """What a soup gains over its best candidate where seeds vary, less where `what` varies."""

    def gain(found: Found, kind: str) -> list[float]:
        at = sparse_lengths.VARIED_AT
        return less(
            *(
                sparse_lengths.varied(found, kind, sparsity, model, "test", at)
                for model in (sparse_lengths.SOUP, sparse_lengths.BEST)
            )
        )

    return lambda found: less(gain(found, "uniform"), gain(found, f"vary-{what}"))
