"""A sweep of the handwriting task with one worker and with two, one thread each.

    python benchmarks/sweep.py [--runs 12] [--rounds 3] [--kills 3]

12 runs of 24 to 72 epochs over 600 digits, each scored on every split. Two times are told: that of
the whole process, and that of the work, from the moment the first run begins to train until the
last is recorded, which leaves out what is paid once, however long a sweep is: imports, the data,
starting the workers. Cases alternate; medians of both, and of the gains round by round.

One worker with two threads is reported beside them. Checkpoints of one and of two workers, and of a
sweep that is killed `--kills` times on its way, are compared byte for byte. The goal is that the
work of two workers takes at most 1/1.7 of the time of one.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot.tasks.handwriting import handwriting, initial_weights
from stockpot.train import RunRecord, SweepOptions, resolve_space, run_sweep
from stockpot.workers import WorkerOptions

task = functools.partial(handwriting, n_train=600, n_fonts=200)
space = resolve_space("small").scaled({"epochs": 3})


@dataclass(frozen=True)
class Took:
    """Seconds of the whole process, and of the work in it."""

    whole: float
    work: float


def sweep(folder: str, n_runs: int, workers: int, threads: int) -> None:
    """The sweep that is measured, in a process of its own; prints the seconds of its work."""
    began: list[float] = []

    def arrived(record: RunRecord) -> None:
        assert record.seconds is not None, record.error
        began.append(time.perf_counter() - record.seconds)

    run_sweep(
        task, initial_weights(0), SweepOptions(n_runs=n_runs, space=space, device="cpu"),
        out=folder, workers=WorkerOptions(n_workers=workers, threads=threads), on_run=arrived,
    )  # fmt: skip
    if began:  # nothing was left to do after a kill at the very end
        print(time.perf_counter() - min(began))


def start(folder: Path, n_runs: int, workers: int, threads: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, "--run", folder, n_runs, workers, threads]
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip


def timed(folder: Path, n_runs: int, workers: int, threads: int) -> Took:
    started = time.perf_counter()
    process = start(folder, n_runs, workers, threads)
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit("the sweep failed")
    return Took(time.perf_counter() - started, float(printed or 0))


def killed(folder: Path, n_runs: int, workers: int, kills: int) -> int:
    """How often the sweep was killed before it was let through."""
    done = 0
    for needed in range(kills):
        process = start(folder, n_runs, workers, 1)
        goal = (needed + 1) * n_runs // (kills + 1)
        while process.poll() is None:
            if len(list(folder.glob("run-*.safetensors"))) >= goal:
                process.send_signal(signal.SIGKILL)
                done += 1
                break
            time.sleep(0.05)
        process.wait()
        time.sleep(1)  # its workers notice within half a second
    timed(folder, n_runs, workers, 1)
    return done


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("run-*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def gains(slow: list[Took], fast: list[Took]) -> dict[str, float]:
    """How many times faster the second is, median over rounds."""
    pairs = list(zip(slow, fast, strict=True))
    return {
        "work": round(statistics.median(a.work / b.work for a, b in pairs), 2),
        "whole": round(statistics.median(a.whole / b.whole for a, b in pairs), 2),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run:
        folder, *numbers = args.run
        sweep(folder, *map(int, numbers))
        return {}
    cases = {"one worker": (1, 1), "two workers": (2, 1), "one worker of two threads": (1, 2)}
    took: dict[str, list[Took]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory(prefix="stockpot-benchmark-") as root:
        for number in range(args.rounds):
            for name, (workers, threads) in cases.items():
                folder = Path(root) / f"{name}-{number}"
                took[name].append(timed(folder, args.runs, workers, threads))
        one, two = (digests(Path(root) / f"{name}-0") for name in ("one worker", "two workers"))
        found: dict[str, Any] = {
            "runs": args.runs,
            "rounds": args.rounds,
            "seconds": {
                name: {
                    "work": round(statistics.median(t.work for t in some), 2),
                    "whole": round(statistics.median(t.whole for t in some), 2),
                }
                for name, some in took.items()
            },
            "two workers against one": gains(took["one worker"], took["two workers"]),
            "same checkpoints": one == two,
        }
        if args.kills:
            folder = Path(root) / "killed"
            found["kills"] = killed(folder, args.runs, 2, args.kills)
            found["same checkpoints after kills"] = digests(folder) == one
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
