"""Learned soups beside uniform, greedy and ensemble: the tables of docs/results.md.

    python -m experiments.handwriting --out ../handwriting            # makes the sweeps
    python -m experiments.learned --demos ../handwriting --seeds 0 1 2 3 4 --out ../learned

    python -m experiments.learned --task experiments/cifar_resnet.py:task \
        --runs ../ingredients/resnet/runs --out ../learned-resnet

Uniform and greedy are chosen on the fitting part of the held-out split, as `Learned` does it, so
that all soups of a row had the same data to choose on. The learned soups are scored whether or not
`Learned` takes them; the last table says which were taken. A killed call continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.checkpoint import Ingredients, expand_paths
from stockpot.evaluation import Evaluator
from stockpot.measures.intervals import t_interval
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.groups import group_names
from stockpot.models.task import Role, Task
from stockpot.recipes import BestSingle, Learned, ensemble
from stockpot.tasks import resolve
from stockpot.tasks.handwriting.lab import FULL, QUICK, Lab

ROWS = ("best-single", "uniform", "greedy", "learned", "learned by layer", "ensemble")


@dataclass(frozen=True)
class Study:
    """Scores of one sweep: row → column → value; `low` and `high` of the columns that report."""

    name: str
    values: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, tuple[float | None, float | None]]]
    taken: Mapping[str, str]
    beta: Mapping[str, float]
    seconds: Mapping[str, float]


def study(name: str, task: Task, paths: Sequence[str], *, cache: Path, epochs: int) -> Study:
    """Cook and score everything on one sweep."""
    evaluator = Evaluator(task, cache=cache)
    try:
        return _study(name, evaluator, Ingredients(paths), epochs=epochs)
    finally:
        evaluator.journal.close()


def _study(name: str, evaluator: Evaluator, given: Ingredients, *, epochs: int) -> Study:
    reporting = [s for s, split in evaluator.task.splits.items() if split.role is not Role.HELD_OUT]
    models: dict[str, Mixture] = {
        "best-single": BestSingle().cook(given, evaluator=evaluator).mixture
    }
    values: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    taken, beta, seconds = {}, {}, {}
    for by, row in (("model", "learned"), ("layer", "learned by layer")):
        begin = time.perf_counter()
        soup = Learned(by=by, n_epochs=epochs).cook(given, evaluator=evaluator, report=False)  # type: ignore[arg-type]
        seconds[row] = time.perf_counter() - begin
        taken[row], beta[row] = str(soup.extra["taken"]), float(soup.extra["beta"])  # type: ignore[arg-type]
        told: Any = soup.extra["learned_coefficients"]
        models[row] = Mixture(given, _coefficients(given, told, by))
        parts: Any = soup.extra["parts"]
        values[row] |= parts["learned"]
        for other in ("uniform", "greedy"):
            values[other] |= parts[other]
        if by == "model":
            fitting: Any = soup.extra["choices"]
            models |= {
                other: Mixture(given, _coefficients(given, fitting[other], "model"))
                for other in ("uniform", "greedy")
            }
    scores = {row: evaluator.scores(mixture, reporting) for row, mixture in models.items()}
    scores["ensemble"] = ensemble(evaluator, list(given)).scores
    for row, found in scores.items():
        values[row] |= {
            s: score.value for s, score in found.items() if s in (*reporting, "shift_average")
        }
    intervals = {
        row: {
            s: (score.low, score.high)
            for s, score in found.items()
            if s in (*reporting, "shift_average")
        }
        for row, found in scores.items()
    }
    return Study(name, values, intervals, taken, beta, seconds)


def _coefficients(given: Ingredients, told: Mapping[str, Any], by: str) -> Coefficients:
    if by == "model":
        return Coefficients.per_model([told[c.path] for c in given])
    names = [n for n in given.specs if n in given.averaged]
    first = next(iter(told))
    group_of = {
        n: g if g in told else first for n, g in group_names(names, by, tied=given.tied).items()
    }
    values = {group: [shares[c.path] for c in given] for group, shares in told.items()}
    return Coefficients.per_group(values, group_of=group_of)


def markdown(studies: Sequence[Study]) -> str:
    """One table of scores in percent, and one of what was taken."""
    columns = [
        "fitting",
        "deciding",
        *(c for c in studies[0].values["learned"] if c not in ("fitting", "deciding")),
    ]
    lines = [
        f"| model | {' | '.join(c.replace('_', ' ') for c in columns)} |",
        "|---|" + "--:|" * len(columns),
    ]
    lines += [
        f"| {row} | {' | '.join(_cell(studies, row, column) for column in columns)} |"
        for row in ROWS
    ]
    kind = (
        f"mean over {len(studies)} sweeps ± half of its 95 % t-interval"
        if len(studies) > 1
        else "with half of the 95 % interval over examples"
    )
    taken = ["| sweep | learned: taken, β | by layer: taken, β | seconds |", "|---|---|---|--:|"]
    taken += [
        f"| {s.name} | "
        + " | ".join(f"{s.taken[r]}, {s.beta[r]:.2f}" for r in ("learned", "learned by layer"))
        + f" | {sum(s.seconds.values()):.0f} |"
        for s in studies
    ]
    gains = [
        "| model | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    gains += (
        [
            f"| {row} | {' | '.join(_gain(studies, row, column) for column in columns)} |"
            for row in ("learned", "learned by layer")
        ]
        if len(studies) > 1
        else []
    )
    told = [f"In percent, {kind}.", "", *lines, ""]
    if len(studies) > 1:
        told += ["Points above greedy, paired by sweep; (n): the interval holds 0.", "", *gains, ""]
    return "\n".join([*told, *taken])


def _cell(studies: Sequence[Study], row: str, column: str) -> str:
    found = [s.values[row][column] for s in studies if column in s.values[row]]
    if not found:
        return "–"
    if len(found) > 1:
        low, high = t_interval(found)
        return f"{100 * statistics.fmean(found):.2f} ± {50 * (high - low):.2f}"
    low, high = studies[0].intervals.get(row, {}).get(column, (None, None))
    spread = "" if low is None or high is None else f" ± {50 * (high - low):.2f}"
    return f"{100 * found[0]:.2f}{spread}"


def _gain(studies: Sequence[Study], row: str, column: str) -> str:
    gains = [s.values[row][column] - s.values["greedy"][column] for s in studies]
    low, high = t_interval(gains)
    noise = " (n)" if low <= 0 <= high else ""
    return f"{100 * np.mean(gains):+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]{noise}"


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demos", type=Path, help="folder that experiments.handwriting wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="the demos were made with --quick")
    parser.add_argument("--task", help="instead of demos: a task as --task takes it")
    parser.add_argument("--runs", nargs="+", help="with --task: checkpoints or their folder")
    parser.add_argument("--epochs", type=int, default=30)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    cache, studies = given.out / "cache", []
    if given.task is not None:
        paths = expand_paths(given.runs)
        studies.append(
            study(given.task, resolve(given.task), paths, cache=cache, epochs=given.epochs)
        )
    else:
        sizes = lab if lab is not None else QUICK if given.quick else FULL
        for seed in given.seeds:
            paths = expand_paths([str(given.demos / f"seed-{seed}" / "runs")])
            found = study(
                f"seed {seed}", sizes.task(seed=seed), paths, cache=cache, epochs=given.epochs
            )
            studies.append(found)
            print(f"seed {seed}: {found.taken}", file=sys.stderr, flush=True)
    text = markdown(studies)
    (given.out / "learned.md").write_text(text + "\n")
    (given.out / "learned.json").write_text(json.dumps([vars(s) for s in studies], indent=1))
    return text


if __name__ == "__main__":
    print(main())
