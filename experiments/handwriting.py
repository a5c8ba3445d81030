"""The demo over several seeds: the table of docs/results/handwriting.md.

    python -m experiments.handwriting --out ../handwriting

runs `stockpot demo` once for each seed (in `OUT/seed-N`, where a killed call continues) and writes
`handwriting.json` and `handwriting.md`. A seed decides everything: which digits are for
fine-tuning, held-out and test, the shifts, the base and the sweep. Held-out chooses; the rest only
reports. The demo was set up on seeds 300 and above; `NAMED` is the recipe that was named then,
before the seeds that are reported were run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments import tables
from stockpot.demo import HEADLINE, DemoResult, run
from stockpot.tasks.handwriting import FULL, QUICK, SHIFTS, WIDE, Lab

WITH_FONTS = "shift average with fonts"
COLUMNS = ("held-out", "test", "shift_average", "fonts", WITH_FONTS)
NAMED = "uniform"
BASELINE = "best-single"
HALF_WAY, MEAN_RUN = "wise-ft, α = 0.5", "mean of the runs"
MODELS = (HEADLINE[0], MEAN_RUN, *HEADLINE[1:-1], HALF_WAY, HEADLINE[-1])


@dataclass(frozen=True)
class Row:
    """One model: its scores, and how much better it is than the best single run of each seed."""

    model: str
    scores: Mapping[str, tables.Cell]
    gains: Mapping[str, tables.Cell]


def table(results: Sequence[DemoResult]) -> list[Row]:
    """Rows of the table; gains are paired by seed, so the spread between seeds drops out."""
    baseline = {split: [value(r, BASELINE, split) for r in results] for split in COLUMNS}

    def row(model: str) -> Row:
        found = {split: [value(r, model, split) for r in results] for split in COLUMNS}
        differences = {
            split: [a - b for a, b in zip(found[split], baseline[split], strict=True)]
            for split in COLUMNS
        }
        return Row(
            model,
            {split: tables.over_seeds(values) for split, values in found.items()},
            {split: tables.over_seeds(values) for split, values in differences.items()},
        )

    return [row(model) for model in MODELS]


def value(result: DemoResult, model: str, split: str) -> float:
    """The score of a model of the demo, of the point 0.5 of its curve, or the mean of its runs."""
    if split == WITH_FONTS:
        return statistics.fmean(value(result, model, shift) for shift in SHIFTS)
    if model == HALF_WAY:
        point = next(p for p in result.curve if p["alpha"] == 0.5)
        return point["scores"][split]["value"]  # type: ignore[index,call-overload,return-value]
    if model == MEAN_RUN:
        runs = [name for name in result.scores if name.startswith("run-")]
        return statistics.fmean(result.scores[name][split].value for name in runs)
    return result.scores[model][split].value


def markdown(rows: Iterable[Row], results: Sequence[DemoResult], named: str = NAMED) -> str:
    """Two tables, in percent and in points."""
    rows = list(rows)
    head = [
        "| model | " + " | ".join(COLUMNS).replace("_", " ") + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    scores = [
        f"| {row.model} | " + " | ".join(tables.in_percent(row.scores[c]) for c in COLUMNS) + " |"
        for row in rows
    ]
    gains = [
        f"| {row.model} | " + " | ".join(tables.in_points(row.gains[c]) for c in COLUMNS) + " |"
        for row in rows
        if row.model != BASELINE
    ]
    return "\n".join(
        [
            f"Accuracy in percent: mean over {len(results)} seeds ± half of its 95 % t-interval.",
            "",
            *head,
            *scores,
            "",
            f"Points above {BASELINE}, paired by seed, with the 95 % t-interval; (n) marks those "
            "whose interval holds 0.",
            "",
            *head,
            *gains,
            "",
            verdict(rows, named),
            "",
            *_details(results),
        ]
    )


def verdict(rows: Sequence[Row], named: str = NAMED) -> str:
    """What became of the recipe that was named beforehand."""
    gains = next(row.gains for row in rows if row.model == named)
    shift, test = gains["shift_average"], gains["test"]
    beats, loses = shift.low > 0, test.high < 0
    return (
        f"Named beforehand: {named}. On the average over shifts without fonts it "
        f"{'beats' if beats else 'does not beat'} {BASELINE} beyond noise "
        f"({tables.in_points(shift)}); on test it {'loses' if loses else 'does not lose'} beyond "
        f"noise ({tables.in_points(test)})."
    )


def _details(results: Sequence[DemoResult]) -> list[str]:
    lines = [
        "| seed folder | best-single | kept by greedy | α | seconds |",
        "|---|---|--:|--:|--:|",
    ]
    return lines + [
        f"| {Path(r.folder).name} | {r.best} | {len(r.kept)} | {r.alpha:g} | {r.seconds:.0f} |"
        for r in results
    ]


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--wide", action="store_true", help="the sweep of stockpot demo --wide")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument(
        "--lr-exponents", type=float, nargs=2, metavar=("A", "B"), help="10^−U(A, B) instead"
    )
    parser.add_argument(
        "--named", default=NAMED, choices=MODELS, help="the recipe that was named before the run"
    )
    given = parser.parse_args(arguments)
    sizes = lab if lab is not None else QUICK if given.quick else WIDE if given.wide else FULL
    if given.lr_exponents is not None:
        sizes = replace(sizes, lr_exponents=tuple(given.lr_exponents))
    results = []
    for seed in given.seeds:
        folder = given.out / f"seed-{seed}"
        results.append(run(folder, lab=sizes, seed=seed, n_workers=given.workers))
        print(f"seed {seed}: {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    rows = table(results)
    text = markdown(rows, results, given.named)
    told = {
        "lab": sizes.to_json(),
        "named": given.named,
        "seeds": given.seeds,
        "cores": os.cpu_count(),
        "rows": [asdict(row) for row in rows],
        "demos": [result.to_json() for result in results],
    }
    (given.out / "handwriting.json").write_text(json.dumps(told, indent=1))
    (given.out / "handwriting.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    print(main())
