"""How much the same seeds differ on another processor: docs/results/questions.md.

    python -m experiments.questions --demos ../handwriting --out ../questions --seeds 20 21 22 23 24

on two machines, and then

    python -m experiments.processors ../questions/questions.json ../questions-2/questions.json \
        --out ../processors

compares the runs of each seed, their means and the soups of all of them. Writes `processors.json`
and `processors.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import SHIFT_AVERAGE, write_results

from experiments import tables

COLUMNS = ("test", SHIFT_AVERAGE)
ROWS = ("one run", "mean of the runs", "soup of all")


def accuracies(seed: Mapping[str, Any], column: str) -> dict[str, list[float]]:
    """What stands in each of `ROWS`: twelve runs, their mean, their soup."""
    runs = [line["1.0"][column] for line in seed["lines"]]
    soup = max(seed["numbers"], key=lambda row: row["k"])["soup"][column]
    return dict(zip(ROWS, (runs, [statistics.fmean(runs)], [soup]), strict=True))


def compare(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each seed that both hold: {row: {column: differences in accuracy, other less one}}."""
    by_seed = {seed["seed"]: seed for seed in one}
    return [
        {
            "seed": seed["seed"],
            **{
                row: {
                    column: tables.less(
                        accuracies(seed, column)[row],
                        accuracies(by_seed[seed["seed"]], column)[row],
                    )
                    for column in COLUMNS
                }
                for row in ROWS
            },
        }
        for seed in other
        if seed["seed"] in by_seed
    ]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Mean size of a difference and the largest one, of each row."""
    rows = []
    for row in ROWS:
        cells = [row]
        for column in COLUMNS:
            sizes = [abs(d) for seed in found for d in seed[row][column]]
            cells += [f"{100 * statistics.fmean(sizes):.2f}", f"{100 * max(sizes):.2f}"]
        rows.append(cells)
    head = ["accuracy of", "test", "at most", "mean of shifts", "at most"]
    return "\n".join(
        [
            f"{len(found)} seeds on two processors, mean size of the difference in points:",
            "",
            *tables.table(head, rows),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("one", type=Path, help="questions.json of one machine")
    parser.add_argument("other", type=Path, help="that of the other")
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    given = parser.parse_args(arguments)
    found = compare(*(json.loads(file.read_bytes()) for file in (given.one, given.other)))
    if not found:
        parser.error("the two files share no seed")
    given.out.mkdir(parents=True, exist_ok=True)
    return write_results(given.out, "processors", found, markdown(found))


if __name__ == "__main__":
    print(main())
