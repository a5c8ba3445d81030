"""`kill -9` at random moments of `stockpot greedy`: is anything scored twice, is the soup the same?

    python experiments/kill_greedy.py --moments 10
    python experiments/kill_greedy.py --task TASK --runs RUN… --workers 2

Cooks once without a kill. Then, with an empty journal, starts the same command over and over, kills
it at a random moment after it has begun to score, and lets the last one through. What the journal
holds tells how often each example of each model was scored: as often as in the run that was never
killed, or the exit code is 1; so it is when the soup or its record differ.

Without `--task` the models are eight small fine-tunes of one network on scikit-learn's digits, and
forward passes wait a moment, so that there is something to interrupt.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).resolve().parents[1] / "src"

TASK = """
import time

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from stockpot import ClassificationTask, Split

x, y = load_digits(return_X_y=True)
x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    )


def predict(model, batch):
    time.sleep({pause})
    return model(batch[0])


task = ClassificationTask(
    build=build,
    predict=predict,
    splits={{
        "val": Split(TensorDataset(x[600:1200], y[600:1200]), role="held-out"),
        "test": Split(TensorDataset(x[1200:], y[1200:]), role="test"),
    }},
    batch_size=64,
    train_set=TensorDataset(x[:600], y[:600]),
)
"""


@dataclass(frozen=True)
class Command:
    """What is run, and killed."""

    task: str
    runs: tuple[str, ...]
    workers: int = 1

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Run it with its journal and its output in `folder`."""
        words = [sys.executable, "-m", "stockpot", "greedy", *self.runs, "--task", self.task]
        words += ["--workers", str(self.workers), "--device", "cpu", "--json", "--force"]
        words += ["--cache", str(folder / "cache"), "-o", str(folder / "soup.safetensors")]
        return subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        )


@dataclass(frozen=True)
class Found:
    """What ten kills, or however many, left behind.

    Attributes:
        kills: how many processes were killed while they worked.
        seconds: after the first score of each process, when it was killed.
        scored: examples in the journal in the end, every one of every model.
        twice: how many of them were scored more often than in the run that was never killed.
        missing: how many less often.
        same_soup: whether the files are equal.
        same_record: whether their records are, but for the seconds that saving took.
    """

    kills: int
    seconds: tuple[float, ...]
    scored: int
    twice: int
    missing: int
    same_soup: bool
    same_record: bool

    @property
    def good(self) -> bool:
        """Whether nothing was scored twice and everything is the same."""
        return not self.twice and not self.missing and self.same_soup and self.same_record


def make_kitchen(folder: Path, *, pause: float = 0.02) -> Command:
    """A task file and eight fine-tunes of one network."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.py").write_text(TASK.format(pause=pause))
    scope: dict[str, Any] = {}
    exec(TASK.format(pause=0), scope)
    torch.manual_seed(0)
    model, data = scope["build"](), scope["task"].train_set.tensors
    start = {name: value.clone() for name, value in model.state_dict().items()}
    runs = []
    for i, rate in enumerate([1e-2, 3e-3, 2e-2, 5e-3, 8e-3, 1e-1, 4e-3, 1.5e-2]):
        model.load_state_dict(start)
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        for step in range(60 + 10 * i):
            part = torch.randint(0, 600, (32,), generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(data[0][part]), data[1][part]).backward()
            optimiser.step()
        runs.append(str(folder / f"run-{i:02}.safetensors"))
        save_file(model.state_dict(), runs[-1])
    return Command(f"{folder / 'task.py'}:task", tuple(runs))


def scored(folder: Path) -> collections.Counter[tuple[str, int]]:
    """How often each example of each model was scored, by what the journal holds."""
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    journal = folder / "cache" / "journal.sqlite"
    if not journal.exists():
        return found
    with contextlib.closing(sqlite3.connect(journal, timeout=60)) as db:
        try:
            rows = db.execute("SELECT key, positions FROM outputs").fetchall()
        except sqlite3.OperationalError:  # it has no tables yet
            return found
    for key, positions in rows:
        found.update((key, int(i)) for i in np.frombuffer(positions, "<i8"))
    return found


def through(command: Command, folder: Path) -> float:
    """Let the command run to its end; seconds from its first score on."""
    process = command.start(folder)
    began = None
    while process.poll() is None:
        if began is None and (folder / "cache" / "journal.sqlite").exists():
            began = time.perf_counter()
        time.sleep(0.005)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors.decode())
    return time.perf_counter() - (began or time.perf_counter())


def kill_once(command: Command, folder: Path, after: float) -> bool:
    """Kill it `after` seconds after it has added to the journal; whether it was still going."""
    before = scored(folder).total()
    process = command.start(folder)
    while process.poll() is None and scored(folder).total() == before:
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def trial(command: Command, folder: Path, *, moments: int, seed: int = 0) -> Found:
    """Kill `moments` times on the way to one soup, and compare it with that of a run without kills.

    A kill may come after so much of the time that is left: the first tenth, then the second of what
    remains, and so on, each at a random moment of its part.
    """
    plain, killed = folder / "plain", folder / "killed"
    left = through(command, plain)
    rng = random.Random(seed)
    seconds: list[float] = []
    attempts = 0
    while len(seconds) < moments and attempts < 10 * moments:
        attempts += 1
        after = rng.random() * left / (moments - len(seconds) + 1)
        if kill_once(command, killed, after):
            seconds.append(after)
            left = max(0.2, left - after)
        else:  # it was through before: what is left is less than thought
            break
    through(command, killed)
    once, again = scored(plain), scored(killed)
    soups = [place / "soup.safetensors" for place in (plain, killed)]
    records = [json.loads(Path(f"{soup}.stockpot.json").read_text()) for soup in soups]
    return Found(
        kills=len(seconds),
        seconds=tuple(seconds),
        scored=again.total(),
        twice=(again - once).total(),
        missing=(once - again).total(),
        same_soup=soups[0].read_bytes() == soups[1].read_bytes(),
        same_record=records[0] == records[1],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--task", help="as --task of the command, with --runs")
    parser.add_argument("--runs", nargs="+", help="checkpoints")
    parser.add_argument("--json", type=Path, help="write what was found here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stockpot-kill-") as scratch:
        if given.task is None:
            made = make_kitchen(Path(scratch) / "kitchen")
            command = Command(made.task, made.runs, given.workers)
        else:
            command = Command(given.task, tuple(given.runs), given.workers)
        found = trial(command, Path(scratch), moments=given.moments, seed=given.seed)
    text = json.dumps(asdict(found), indent=2)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)
    return int(not found.good)


if __name__ == "__main__":
    sys.exit(main())
