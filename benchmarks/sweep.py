"""A sweep of the handwriting task with one worker and with two, one thread each.

    python benchmarks/sweep.py [--runs 12] [--rounds 1] [--kills 3]

Whole processes are timed, imports and scoring included: 12 runs of 24 to 72 epochs over 600 digits,
about a minute and a half on one core.

One worker with two threads is reported beside them. Checkpoints of one and of two workers, and of a
sweep that is killed `--kills` times on its way, are compared byte for byte. The goal is that two
workers are at least 1.7 times as fast as one.
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
from pathlib import Path

from stockpot.sweep import run_sweep
from stockpot.sweep.named import small_law
from stockpot.tasks.handwriting import handwriting, initial_weights

task = functools.partial(handwriting, n_train=600, n_fonts=200)
space = small_law().scaled({"epochs": 3})


def sweep(folder: str, n_runs: int, workers: int, threads: int) -> None:
    """The sweep that is measured; runs in a process of its own, imports included."""
    run_sweep(
        task, initial_weights(0), out=folder, space=space, n_runs=n_runs, n_workers=workers,
        threads=threads, device="cpu",
    )  # fmt: skip


def start(folder: Path, n_runs: int, workers: int, threads: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, "--run", folder, n_runs, workers, threads]
    return subprocess.Popen(
        [str(word) for word in words], env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )


def timed(folder: Path, n_runs: int, workers: int, threads: int) -> float:
    started = time.perf_counter()
    if start(folder, n_runs, workers, threads).wait() != 0:
        raise SystemExit("the sweep failed")
    return time.perf_counter() - started


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        folder, *numbers = args.run
        sweep(folder, *map(int, numbers))
        return
    cases = {"one worker": (1, 1), "two workers": (2, 1), "one worker of two threads": (1, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory(prefix="stockpot-benchmark-") as root:
        for number in range(args.rounds):
            for name, (workers, threads) in cases.items():
                folder = Path(root) / f"{name}-{number}"
                seconds[name].append(timed(folder, args.runs, workers, threads))
        one, two = (digests(Path(root) / f"{name}-0") for name in ("one worker", "two workers"))
        pairs = zip(seconds["one worker"], seconds["two workers"], strict=True)
        gains = [slow / fast for slow, fast in pairs]
        found: dict[str, object] = {
            "runs": args.runs,
            "seconds": {name: round(statistics.median(v), 2) for name, v in seconds.items()},
            "two workers against one": round(statistics.median(gains), 2),
            "same checkpoints": one == two,
        }
        if args.kills:
            folder = Path(root) / "killed"
            found["kills"] = killed(folder, args.runs, 2, args.kills)
            found["same checkpoints after kills"] = digests(folder) == one
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
