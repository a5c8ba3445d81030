"""`kill -9` at random moments of `stockpot average`: what is left, and does a rerun clear it up?

    python experiments/kill_average.py --moments 20 --size-mb 150

Averages generated checkpoints to a file and to a model folder, over an older output and over none,
kills the process at a random moment of its run, and looks at what is there: the older output byte
for byte, nothing, or the complete new one are allowed; anything else makes the exit code 1. After
every kill the same command runs to its end and must leave the output and nothing else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import stockpot

SOURCE = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Trial:
    """One kill of a running process: when, and what was there before and after."""

    kind: str
    older: bool
    writing: bool  # `after` counts from the first write, else from the start
    after: float  # seconds
    left: str  # "old", "absent", "complete" or "a part"
    leftovers: int
    clean_after_rerun: bool


def make_checkpoint(path: Path, n_bytes: int, seed: int) -> None:
    """Random F32 values in tensors of four megabytes, as a file or a folder by its name."""
    rng = np.random.default_rng(seed)
    count = max(1, n_bytes // 4_000_000)
    state = {
        f"layers.{i}.weight": rng.standard_normal((1000, 1000), dtype=np.float32)
        for i in range(count)
    }
    source = stockpot.Ingredients([{name: torch.from_numpy(v) for name, v in state.items()}])
    stockpot.Mixture(source).save(path, max_shard_bytes=40_000_000)


def digest(path: Path) -> str | None:
    """SHA-256 over names and contents of a file or folder; None when there is nothing.

    Records are named and not read: they say how long the run took.
    """
    if not path.exists():
        return None
    state = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        state.update(file.name.encode() + b"\0")
        if not file.name.endswith("stockpot.json"):
            state.update(file.read_bytes())
    return state.hexdigest()


def start(inputs: list[Path], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stockpot", "average", *map(str, inputs)]
    return subprocess.Popen(
        [*command, "-o", str(output), "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def run(inputs: list[Path], output: Path) -> float:
    started = time.perf_counter()
    process = start(inputs, output)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors.decode())
    return time.perf_counter() - started


def kill_once(
    inputs: list[Path],
    older: Path | None,
    output: Path,
    after: float,
    *,
    writing: bool,
) -> bool:
    """Run over a copy of `older`; kill `after` seconds after the start, or after the first write.

    Returns whether the run was still going when it was killed.
    """
    shutil.rmtree(output.parent, ignore_errors=True)
    output.parent.mkdir()
    if older is not None:
        (shutil.copytree if older.is_dir() else shutil.copyfile)(older, output)
    before = len(list(output.parent.iterdir()))
    process = start(inputs, output)
    while writing and process.poll() is None and len(list(output.parent.iterdir())) == before:
        time.sleep(0.0002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def trials(folder: Path, *, moments: int, n_bytes: int, seed: int = 0) -> list[Trial]:
    """`moments` kills of a running process for each kind of output, half over an older one.

    Every second kill is counted from the first write. A run that ends before its kill is not a
    trial: the estimate of the duration, which other load on the machine changes, is lowered then.
    """
    rng = random.Random(seed)
    inputs = [folder / "inputs" / f"run-{i}.safetensors" for i in range(3)]
    for i, path in enumerate(inputs):
        make_checkpoint(path, n_bytes, i)
    found = []
    for kind in ("file", "folder"):
        name = "soup.safetensors" if kind == "file" else "soup"
        older = folder / "older" / name
        make_checkpoint(older, n_bytes, 99)
        output = folder / "out" / name
        shutil.rmtree(output.parent, ignore_errors=True)
        duration = {False: run(inputs, output), True: 0.5}
        complete = {entry.name: digest(entry) for entry in output.parent.iterdir()}
        wanted = moments
        while wanted:
            over, writing = wanted % 2 == 0, wanted % 4 < 2
            after = rng.random() * duration[writing]
            before = older if over else None
            running = kill_once(inputs, before, output, after, writing=writing)
            if not running:
                duration[writing] = max(0.8 * duration[writing], 0.02)
                continue
            wanted -= 1
            duration[writing] = max(duration[writing], 1.2 * after)
            left = digest(output)
            state = "complete" if left == complete[name] else "a part"
            if left == (digest(older) if over else None):
                state = "old" if over else "absent"
            leftovers = sum(entry != output for entry in output.parent.iterdir())
            run(inputs, output)
            rerun = {entry.name: digest(entry) for entry in output.parent.iterdir()}
            clean = rerun == complete
            found.append(Trial(kind, over, writing, after, state, leftovers, clean))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=20, help="kills for each kind of output")
    parser.add_argument("--size-mb", type=int, default=150, help="megabytes of each checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk to try; default: temporary"
    )
    parser.add_argument("--json", type=Path, help="write every trial here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        found = trials(
            Path(scratch), moments=given.moments, n_bytes=given.size_mb * 10**6, seed=given.seed
        )
    if given.json is not None:
        given.json.write_text(json.dumps([vars(trial) for trial in found], indent=1))
    for kind in ("file", "folder"):
        some = [trial for trial in found if trial.kind == kind]
        counts = collections.Counter(trial.left for trial in some)
        print(
            f"{kind}: {len(some)} kills; {dict(counts)}; "
            f"{sum(t.writing for t in some)} after the first write; "
            f"{sum(t.leftovers > 0 for t in some)} left temporary files; "
            f"{sum(t.clean_after_rerun for t in some)} of {len(some)} clean after a rerun"
        )
    allowed = {"old", "absent", "complete"}
    return int(not all(trial.left in allowed and trial.clean_after_rerun for trial in found))


if __name__ == "__main__":
    sys.exit(main())
