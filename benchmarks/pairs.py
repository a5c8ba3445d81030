"""Average the same models by two checkouts in turn: is the newer as fast?

    python benchmarks/pairs.py OLD NEW --pairs 15 --size 300MB

Each checkout is a folder with `src/`, its sums compiled there. Models are in the page cache, the
output is new each time, and which of the two is first alternates. Wall seconds are those that the
command reports without imports; processor seconds are of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.average import warm_up
from benchmarks.llama import make_models
from benchmarks.measuring import parse_bytes


@dataclass(frozen=True)
class Once:
    """One run: wall seconds of averaging, and processor seconds of the process."""

    seconds: float
    cpu: float


def average(checkout: Path, models: Sequence[Path], work: Path) -> Once:
    """Average by the command of a checkout."""
    shutil.rmtree(work, ignore_errors=True)
    words = [sys.executable, "-m", "stockpot", "average", *map(str, models)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*words, "-o", str(work / "soup"), "--json"],
        env={
            **os.environ,
            "PYTHONPATH": str(checkout / "src"),
            "STOCKPOT_CACHE": str(work / "cache"),
        },
        capture_output=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Once(json.loads(done.stdout)["seconds"], cpu)


def interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median, and its 95 % interval by 10,000 bootstrap samples."""
    draws = np.random.default_rng(seed).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return statistics.median(ratios), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--size", type=parse_bytes, default=300_000_000, help="of each model")
    parser.add_argument("--data", type=Path, help="folder for models and outputs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        models = make_models(Path(folder, "models"), given.models, given.size, moved=0.01)
        found: dict[str, list[Once]] = {"old": [], "new": []}
        for pair in range(given.pairs + 1):
            for name in ("old", "new") if pair % 2 else ("new", "old"):
                warm_up(models)
                once = average(getattr(given, name).resolve(), models, Path(folder, "work"))
                if pair:  # the first is not counted: files of Python are compiled
                    found[name].append(once)
        for what in ("seconds", "cpu"):
            values = {name: [getattr(one, what) for one in runs] for name, runs in found.items()}
            pairs = zip(values["new"], values["old"], strict=True)
            median, low, high = interval([new / old for new, old in pairs])
            print(
                f"{what}: old {statistics.median(values['old']):.3f}, new "
                f"{statistics.median(values['new']):.3f}, new/old {median:.3f} "
                f"({low:.3f} to {high:.3f}), {given.pairs} pairs"
            )


if __name__ == "__main__":
    main()
