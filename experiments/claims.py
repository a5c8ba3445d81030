"""What the papers claim, and what the published data of this repository show of it.

    python -m experiments.claims          # the table of docs/results/claims.md
    python -m experiments.reproduce NAME  # makes the data of one claim again

A finding is one number per sweep or seed, in the direction that the paper reports. The claim
*holds* there where the 95 % t-interval over sweeps lies above 0, does *not hold* where it lies
below, and is *within noise* in between. Their numbers are points of ImageNet top-1, or of the mean
of its five shifts, where nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tables

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
class Quoted:
    """A finding of a table without data beside it: its cell as it stands on the page.

    Attributes:
        setting: what was trained, for people.
        page: of docs/results, with the place on it.
        row: name of the row.
        cell: the number with its interval, as in the table.
        verdict: what that means for the claim.
    """

    setting: str
    page: str
    row: str
    cell: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """What a paper says, its number, and what was found here; nothing where it was not tested."""

    name: str
    paper: str
    text: str
    theirs: str
    findings: tuple[Finding, ...] = ()
    quoted: tuple[Quoted, ...] = ()
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


# ── claims ────────────────────────────────────────────────────────────────────────────────────────

SOUPS, WISE, SMS = "Model soups", "WiSE-FT", "Sparse model soups"
BEST, SHIFTS = "best single", "shift_average"
HAND = "handwriting, moderate rates, 5 sweeps of 12"
DEMO = "handwriting, moderate rates, 10 sweeps of 12"
RESNET = "ResNet-20, wide rates, 3 sweeps of 12"


def _everywhere(model: str, other: str, split: str) -> tuple[Finding, ...]:
    """The same difference in both tables of every recipe."""
    values = between(model, other, split)
    return Finding(HAND, "every-handwriting", values), Finding(RESNET, "every-resnet", values)


def _in_demos(model: str, other: str, split: str) -> tuple[Finding, ...]:
    """The same difference in the demo over ten seeds, and in the table of ResNet-20."""
    names = {BEST: "best-single"}
    demo = between_demos(names.get(model, model), names.get(other, other), split)
    return (
        Finding(DEMO, "handwriting-ten", demo),
        Finding(RESNET, "every-resnet", between(model, other, split)),
    )


def _at_phases(model: str, other: str, *phases: str) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            f"ResNet-20 at {100 * float(phase):.1f} %, 3 seeds",
            "sparse-resnet",
            sparse(model, other, phase),
        )
        for phase in phases
    )


_PHASES = ("0.728558", "0.926319", "0.98")

CLAIMS = (
    Claim(
        "greedy",
        SOUPS,
        "A greedy soup is more accurate than the best single run.",
        "+0.65 (CLIP ViT-B/32, 72 runs), +0.22 (ViT-G/14, 58 runs)",
        _in_demos("greedy", BEST, "test"),
    ),
    Claim(
        "greedy-shifts",
        SOUPS,
        "On shifted data a greedy soup gains more.",
        "+2.92; +0.64",
        _in_demos("greedy", BEST, SHIFTS),
    ),
    Claim(
        "uniform-loses",
        SOUPS,
        "The uniform soup of a wide sweep loses to the best single run.",
        "−0.41",
        _in_demos(BEST, "uniform", "test"),
    ),
    Claim(
        "uniform-shifts",
        SOUPS,
        "On shifted data even the uniform soup gains.",
        "+3.62",
        _in_demos("uniform", BEST, SHIFTS),
    ),
    Claim(
        "learned",
        SOUPS,
        "Coefficients that are learned by layer beat the greedy soup.",
        "+0.34",
        _everywhere("learned by layer", "greedy", "test"),
    ),
    Claim(
        "ensemble",
        SOUPS,
        "A greedy ensemble is more accurate than the greedy soup.",
        "+0.87; −0.01",
        _everywhere("greedy ensemble", "greedy", "test"),
    ),
    Claim(
        "soup-over-ensemble",
        SOUPS,
        "On shifted data the greedy soup is more accurate than the greedy ensemble.",
        "+1.31; +0.69",
        _everywhere("greedy", "greedy ensemble", SHIFTS),
    ),
    Claim(
        "text",
        SOUPS,
        "Greedy soups gain on GLUE as well.",
        "BERT-base 0.0 to +0.7, T5-base +0.1 to +1.4",
        (
            Finding(
                "MiniLM on CoLA (Matthews), 3 sweeps of 8, in which little was learnt",
                "soups-cola",
                between("greedy", BEST, "test"),
            ),
        ),
    ),
    Claim(
        "angle",
        SOUPS,
        "The wider the angle between two runs, the more their mean gains.",
        "",
        tuple(
            Finding(
                f"handwriting, {what} varied, 5 seeds",
                "angles-handwriting",
                angle_and_gain(what),
                "r",
            )
            for what in ("learning rate", "augmentation", "seed")
        ),
    ),
    Claim(
        "calibration",
        SOUPS,
        "Ensembles are better calibrated than single runs, soups are not.",
        "",
        quoted=tuple(
            Quoted(
                f"handwriting, {row}, ECE times 100, 5 sweeps",
                "diagnosis.md#handwriting-why-soups-work-here-or-do-not",
                row,
                cell,
                said,
            )
            for row, cell, said in (
                ("best single", "13.87 ± 8.04", ""),
                ("greedy", "13.09 ± 7.30", "holds"),
                ("ensemble", "4.58 ± 1.97", "holds"),
            )
        ),
    ),
    Claim(
        "basin",
        SOUPS,
        "Networks of different initialisations do not average.",
        "",
        quoted=(
            Quoted(
                "ResNet-20 from scratch, uniform less best single, 3 sweeps of 3",
                "fine-tunes.md#the-scratch-control",
                "uniform",
                "-46.71 [-50.28, -43.13]",
                "holds",
            ),
        ),
    ),
    Claim(
        "pretraining",
        SOUPS,
        "Soups gain more from a base that was pretrained on more.",
        "",
        untested="It needs bases pretrained on parts of the data, and fine-tunes of each.",
    ),
    Claim(
        "line-shifts",
        WISE,
        "Half-way between zero-shot and fine-tuned the shifted accuracy is far above fine-tuned.",
        "+9.2 (CLIP ViT-B/16), +8.3 (ViT-L/14)",
        (
            Finding("ResNet-20, mean of shifts, 3 sweeps", "wise_ft-resnet", on_the_line(SHIFTS)),
            Finding(
                "ResNet-20, the base's own data, 3 sweeps",
                "wise_ft-resnet",
                on_the_line("lossless"),
            ),
            Finding(
                "handwriting, the base's own data, α chosen, 5 sweeps",
                "every-handwriting",
                between("WiSE-FT of best single", BEST, "fonts"),
            ),
        ),
    ),
    Claim(
        "line-reference",
        WISE,
        "On the data that was fine-tuned on, the best α gains as well (here: chosen on held-out).",
        "+1.3; +0.9",
        _everywhere("WiSE-FT of best single", BEST, "test"),
    ),
    Claim(
        "robustness",
        WISE,
        "The gain is effective robustness: above the line of models that saw the reference alone.",
        "",
        quoted=tuple(
            Quoted(
                f"handwriting, {row}, points above the line of 16 baselines, 5 sweeps",
                "wise-ft.md#effective-robustness-in-the-lab",
                row,
                cell,
                "holds",
            )
            for row, cell in (
                ("α = 0.5", "+9.40 [+5.96, +12.83]"),
                ("fine-tuned", "+4.80 [+2.58, +7.02]"),
            )
        ),
    ),
    Claim(
        "sparse-best",
        SMS,
        "A soup of pruned and retrained models beats the best of them.",
        "up to +2",
        _at_phases("soup, uniform", "best candidate", *_PHASES),
    ),
    Claim(
        "sparse-mean",
        SMS,
        "A soup of pruned and retrained models beats their mean.",
        "",
        _at_phases("soup, uniform", "mean candidate", *_PHASES),
    ),
    Claim(
        "sparse-extreme",
        SMS,
        "At extreme sparsity the uniform soup falls before the greedy one.",
        "",
        _at_phases("soup, greedy", "soup, uniform", "0.98"),
    ),
    Claim(
        "sparse-longer",
        SMS,
        "With little retraining a single longer run can win (IMP with three times the epochs).",
        "",
        _at_phases("IMP, 3× the epochs", "soup, uniform", "0.98"),
    ),
    Claim(
        "sparse-reprune",
        SMS,
        "Averaging models that were pruned apart, and pruning again, loses.",
        "",
        _at_phases("soup, uniform", "IMP-RePrune", "0.98"),
    ),
    Claim(
        "sparse-varied",
        SMS,
        "Varying the seed alone is the safest.",
        "",
        untested="Seed, decay, length and rate have not been varied apart with enough retraining.",
    ),
    Claim(
        "window",
        "SWA, LAWA",
        "A mean along a run at a constant rate beats its last checkpoint.",
        "",
        (
            Finding(
                "a small GPT, best of 444 windows, 3 seeds",
                "pretraining-gpt",
                below_in_loss("best window, full grid", "last checkpoint"),
                "nat",
            ),
            Finding(
                "the same, 39 windows scored",
                "pretraining-gpt",
                below_in_loss("best window, budget", "last checkpoint"),
                "nat",
            ),
        ),
    ),
    Claim(
        "decay",
        "LAWA",
        "Such a window takes the place of a decay of the rate.",
        "",
        (
            Finding(
                "a small GPT, window minus a run whose rate fell to 0, 3 seeds",
                "pretraining-gpt",
                below_in_loss("best window, full grid", "rate fell to 0"),
                "nat",
            ),
        ),
    ),
    Claim(
        "zoo",
        "Zoo-Tuning",
        "Gates over several pretrained networks beat the best fine-tune of one.",
        "",
        (
            Finding(
                "handwriting, three networks, three times the epochs for the single one, 5 seeds",
                "zoo-handwriting",
                by_zoo("Zoo-Tuning", "best of the three, 3× the epochs"),
            ),
        ),
    ),
)


def named(name: str) -> Claim:
    """The claim of this name.

    Raises:
        ValueError: there is none; lists those that there are.
    """
    for claim in CLAIMS:
        if claim.name == name:
            return claim
    raise ValueError(f"there is no claim {name!r}; choose {', '.join(c.name for c in CLAIMS)}")


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def verdict(cell: tables.Cell) -> str:
    """Whether the interval lies on the claimed side of 0."""
    if cell.half != cell.half:
        return "one sweep"
    return "holds" if cell.low > 0 else "does not hold" if cell.high < 0 else "within noise"


def shown(cell: tables.Cell, unit: str) -> str:
    """Mean and interval in the unit of the finding."""
    times, digits, word = (100, 2, "") if unit == "points" else (1, 3 if unit == "nat" else 2, unit)
    mean, low, high = (f"{times * x:+.{digits}f}" for x in (cell.mean, cell.low, cell.high))
    name = {"nat": " nat", "r": "r = "}.get(word, "")
    text = f"{name}{mean}" if unit == "r" else f"{mean}{name}"
    return text if cell.half != cell.half else f"{text} ({low} to {high})"


def rows(claim: Claim, data: Path = DATA) -> list[list[str]]:
    """Rows of the table: one for each finding."""
    found = []
    for finding in claim.findings:
        cell = finding.cell(data)
        found.append([f"{finding.setting}: {shown(cell, finding.unit)}", verdict(cell)])
    for one in claim.quoted:
        number = one.cell.replace("[", "(").replace("]", ")").replace(", ", " to ")
        found.append([f"{one.setting}: [{number}]({one.page})", one.verdict])
    if not found:
        found = [[claim.untested, "not tested"]]
    head = [f"`{claim.name}`", f"{claim.text} *{claim.paper}*", claim.theirs]
    return [[*head, *found[0]], *(["", "", "", *rest] for rest in found[1:])]


def markdown(data: Path = DATA) -> str:
    """The table, and how many findings say what."""
    found = [row for claim in CLAIMS for row in rows(claim, data)]
    lines = tables.table(["name", "claim", "their number", "ours", "verdict"], found)
    lines[1] = "|---|---|---|---|---|"
    said = [row[-1] for row in found if row[-1]]
    summary = ", ".join(f"{said.count(word)} {word}" for word in dict.fromkeys(said))
    return "\n".join([*lines, "", f"Findings: {summary}."])


def main() -> str:
    """The table as Markdown."""
    return markdown()


if __name__ == "__main__":
    print(main())
