"""What the papers claim, and what the published data of this repository show of it.

    python -m experiments.claims          # the table of docs/results/claims.md
    python -m experiments.reproduce NAME  # makes the data of one claim again

A finding is one number per sweep or seed, in the direction that the paper reports. The claim
*holds* there where the 95 % t-interval over sweeps lies above 0, does *not hold* where it lies
below, and is *within noise* in between. Their numbers are points of ImageNet top-1, or of the mean
of its five shifts, where nothing else is said.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.claim_findings import DATA, Claim, Finding
from experiments.claim_list import CLAIMS

from experiments import tables


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


def ours(finding: Finding, data: Path = DATA, *, partial: bool = False) -> list[str]:
    """What was found, and the verdict; with `partial` the data may lack what this one needs."""
    try:
        cell = finding.cell(data)
    except (LookupError, StopIteration, statistics.StatisticsError):
        if not partial:
            raise
        return [f"{finding.setting}: not made in a few steps", ""]
    return [f"{finding.setting}: {shown(cell, finding.unit)}", verdict(cell)]


def rows(claim: Claim, data: Path = DATA, *, partial: bool = False) -> list[list[str]]:
    """Rows of the table: one for each finding."""
    found = [ours(finding, data, partial=partial) for finding in claim.findings]
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
