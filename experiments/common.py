"""What several experiments share: files written whole, and jobs side by side."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stockpot.workers import JobResult, WorkerOptions, raise_failures, run_jobs

R = TypeVar("R")

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
"""The points of the WiSE-FT paper's curves."""
POLICIES = ("averaged", "recalibrated", "clean")
"""The BatchNorm policies; a table is of one of them."""
SHIFT_AVERAGE = "shift_average"
"""The column beside the splits."""


def write_json(path: Path, data: Any) -> None:
    """Write `data`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(data, indent=1))
    part.replace(path)


def write_results(out: Path, name: str, found: Any, text: str) -> str:
    """Write what was found as `NAME.json` and its tables as `NAME.md`; the tables."""
    write_json(out / f"{name}.json", found)
    (out / f"{name}.md").write_text(text + "\n")
    return text


def side_by_side(
    function: Callable[[Any], R], jobs: Mapping[str, Any], *, n_jobs: int
) -> list[JobResult[R]]:
    """`function` of each job in `n_jobs` processes; a line on stderr for each that ends."""

    def report(result: JobResult[R]) -> None:
        state = f"{result.seconds:.0f} s" if result.error is None else "failed"
        print(f"{result.name}: {state}", file=sys.stderr, flush=True)

    return run_jobs(function, jobs, workers=WorkerOptions(n_workers=n_jobs), on_result=report)


def of_seeds(
    study: Callable[[int], Any], seeds: Sequence[int], out: Path, *, file: str, n_jobs: int
) -> dict[str, Any]:
    """Run `study` of each seed side by side; seed → what it wrote as `OUT/seed-N/FILE`."""
    jobs = {f"seed {seed}": seed for seed in seeds}
    values_of(side_by_side(study, jobs, n_jobs=n_jobs))
    return {str(seed): json.loads((out / f"seed-{seed}" / file).read_bytes()) for seed in seeds}


def values_of(results: list[JobResult[R]]) -> list[R]:
    """The values of jobs that all went well.

    Raises:
        WorkerError: names those that failed.
    """
    raise_failures(results)
    return [result.value for result in results if result.value is not None]


def evenly(labels: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
    """A random order of all examples of which every first part holds the classes in their shares.

    Many files are sorted by class: a part of them has to be taken in this order.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        place[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(place).astype(np.int64)


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """Largest excess of the loss on a path over the line between its ends, and where it is.

    Reference: Frankle et al. 2020, arXiv 1912.05671.
    """
    first, last = losses[0], losses[-1]
    excess = [
        (loss - (1 - a) * first - a * last, a) for a, loss in zip(alphas, losses, strict=True)
    ]
    return max(excess, key=lambda found: found[0])
