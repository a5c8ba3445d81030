"""What compare_checkouts.py runs in both checkouts: cases, inputs, and how they are called.

Nothing of stockpot is imported: its command line is called as a user would.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A row of the table: one or several calls of a command.

    Attributes:
        name: also the folder below `out/` that the calls write to.
        calls: arguments of each; `--json` is added.
        code: the exit code that is right.
        trained: whether the inputs that take training are needed.
        needs: cases whose outputs these calls read.
        like: case whose output folder and cache they go on with.
        before: called with the run's folder before the calls.
        continues: the calls find what the old checkout wrote, in place of a fresh folder.
    """

    name: str
    calls: tuple[tuple[str, ...], ...]
    code: int = 0
    trained: bool = False
    needs: tuple[str, ...] = ()
    like: str | None = None
    before: Callable[[Path], None] | None = None
    continues: bool = False

    @property
    def command(self) -> str:
        return self.calls[0][0]

    @property
    def folder(self) -> str:
        return self.like or self.name


PLAIN = tuple(f"inputs/plain/{name}.safetensors" for name in ("a", "b", "c"))
PLAIN_BASE, ODD = "inputs/plain/base.safetensors", "inputs/plain/odd.safetensors"
HALF = ("inputs/plain/half-a.safetensors", "inputs/plain/half-b.safetensors")
RUNS, BASE = "inputs/runs", "inputs/base/run-00.safetensors"
RUN = tuple(f"{RUNS}/run-{i:02d}.safetensors" for i in range(5))
TASK = ("--task", "task.py:task")
PROGRAM = f"{shlex.quote(sys.executable)} score.py {{checkpoint}}"


def soup(case: str, name: str = "soup.safetensors") -> str:
    """Where a case writes its checkpoint."""
    return f"out/{case}/{name}"


def _averages() -> Iterator[Case]:
    def case(name: str, *arguments: str, out: str = "soup.safetensors", **more: Any) -> Case:
        call = ("average", *arguments, "-o", soup(name, out))
        return Case(name, (call,), **more)

    yield case("average", *PLAIN)
    yield case("average-weights", *PLAIN, "--weights", "3,2,1", "--normalise")
    yield case("average-folder", *PLAIN, "--max-shard-size", "400kB", out="soup")
    yield case("average-pt", *PLAIN, out="soup.pt")
    yield case("average-bf16", *PLAIN, "--dtype", "bf16")
    yield case("average-of-bf16", *HALF)
    yield case("average-plan", *PLAIN, "--dry-run")
    mixed = (soup("average-folder", "soup"), soup("average-pt", "soup.pt"), PLAIN[0])
    yield case("average-mixed", *mixed, needs=("average-folder", "average-pt"))
    yield case("average-refused", PLAIN[0], ODD, code=1)
    yield case("average-top", RUNS, "--top", "3", *TASK, trained=True)


def _interpolations() -> Iterator[Case]:
    def case(name: str, *arguments: str, out: str = "soup.safetensors", **more: Any) -> Case:
        return Case(name, (("interpolate", *arguments, "-o", soup(name, out)),), **more)

    grid = (*TASK, "--alphas", "0:1:0.25")
    yield case("interpolate-alpha", PLAIN_BASE, PLAIN[0], "--alpha", "0.3")
    yield case("interpolate", BASE, RUN[0], *grid, "--alternatives", trained=True)
    report = ("--report", "out/interpolate-several/report")
    yield case(
        "interpolate-several",
        *(BASE, *RUN[:2], *grid, "--by", "layer", *report),
        out="mixed",
        trained=True,
    )


def _recipes() -> Iterator[Case]:
    def case(name: str, *arguments: str, **more: Any) -> Case:
        call = (name.partition("-")[0], *arguments, "-o", soup(name))
        return Case(name, (call,), trained=True, **more)

    yield case("greedy", RUNS, *TASK, "--base", BASE, "--random-orders", "2", "--curve", "2")
    yield case("greedy-program", *RUN[:3], "--eval", PROGRAM)
    yield case("pruned", RUNS, *TASK)
    by_layer = ("--by", "layer", "--optimiser", "adamw", "--step-size", "64", "--epochs", "3")
    yield case("learned", RUNS, *TASK, *by_layer)
    yield case("auto", RUNS, *TASK, "--base", BASE, "--alphas", "0:1:0.5")
    yield case("trajectory", *RUN, *TASK)
    phases = ("--sparsity", "0.8", "--phases", "2", "--candidates", "2", "--epochs", "1")
    yield case("sparse", RUN[0], *TASK, *phases, "--workers", "1")


def _others() -> Iterator[Case]:
    def case(name: str, *calls: tuple[str, ...], **more: Any) -> Case:
        return Case(name, calls, **more)

    yield case("inspect", ("inspect", *PLAIN, "--base", PLAIN_BASE, "--fingerprint"))
    yield case("inspect-odd", ("inspect", PLAIN[0], ODD, HALF[0]))
    scored = ("evaluate", *RUN[:3], *TASK, "--ensemble")
    yield case("evaluate", scored, trained=True)
    asked = ("--line", f"{BASE},uniform", "-o", "out/diagnose/page")
    yield case("diagnose", ("diagnose", RUNS, *TASK, "--base", BASE, *asked), trained=True)
    yield case("sweep", sweep(2), trained=True)
    small, dense = soup("compress", "small.safetensors"), soup("expand", "dense.safetensors")
    packed = ("compress", soup("sparse"), "-o", small)
    yield case("compress", packed, trained=True, needs=("sparse",))
    yield case("expand", ("expand", small, "-o", dense), trained=True, needs=("compress",))
    kept = [("average", "soup.safetensors"), ("average-folder", "soup"), ("average-pt", "soup.pt")]
    whole = [("verify", soup(*one)) for one in kept]
    yield case("verify", *whole, needs=tuple(name for name, _ in kept))
    wrong = ("verify", soup("verify-changed"))
    yield case("verify-changed", wrong, code=1, needs=("average",), before=change_a_byte)
    pages = (
        ("report", soup("learned"), "-o", "out/report/soup.html", "--data", "out/report/data"),
        ("report", "out/interpolate-several/report", "-o", "out/report/curve.html"),
        ("report", RUNS, "-o", "out/report/sweep.md"),
    )
    yield case("report", *pages, trained=True, needs=("learned", "interpolate-several"))
    yield case("journal", ("journal", "list"), trained=True, needs=("greedy",), like="greedy")
    yield case("demo", ("demo", "--quick", "-o", "out/demo/demo", "--workers", "1"))


VERIFIED = (
    ("average", "soup.safetensors"),
    ("average-folder", "soup"),
    ("average-pt", "soup.pt"),
    ("average-bf16", "soup.safetensors"),
    ("interpolate", "soup.safetensors"),
    ("interpolate-several", "mixed/run-00.safetensors"),
    ("greedy", "soup.safetensors"),
    ("learned", "soup.safetensors"),
    ("auto", "soup.safetensors"),
    ("trajectory", "soup.safetensors"),
    ("sparse", "soup.safetensors"),
    ("compress", "small.safetensors"),
)


def _continuity(cases: Sequence[Case]) -> Iterator[Case]:
    """What the old checkout wrote, under the new one."""
    fresh = {case.name: case for case in cases}

    def again(name: str, call: tuple[str, ...]) -> Case:
        return Case(
            f"continuity-{name}", (call,), trained=True, needs=(name,), like=name, continues=True
        )

    checks = tuple(("verify", soup(*one)) for one in VERIFIED)
    needs = tuple(name for name, _ in VERIFIED)
    yield Case("continuity-verify", checks, trained=True, needs=needs, continues=True)
    yield again("greedy", (*fresh["greedy"].calls[0], "--force"))
    yield again("diagnose", (*fresh["diagnose"].calls[0], "--force"))
    yield again("sweep", sweep(3))
    pages = (
        ("report", soup("learned"), "-o", "out/continuity-report/soup.html"),
        ("report", "out/interpolate-several/report", "-o", "out/continuity-report/curve.html"),
        ("report", "out/sweep/runs", "-o", "out/continuity-report/sweep.md"),
    )
    needs = ("learned", "interpolate-several", "sweep")
    yield Case("continuity-report", pages, trained=True, needs=needs, continues=True)


def sweep(n: int) -> tuple[str, ...]:
    """A sweep of `n` runs, by two workers: who runs them must not matter."""
    where = ("--base", BASE, "-o", "out/sweep/runs", "--space", "averages.json")
    return ("sweep", *TASK, *where, "--runs", str(n), "--workers", "2")


def all_cases() -> list[Case]:
    """Every case, each after those that it needs."""
    fresh = [*_averages(), *_interpolations(), *_recipes(), *_others()]
    return [*fresh, *_continuity(fresh)]


def change_a_byte(folder: Path) -> None:
    """A soup that is no longer what its record says."""
    for suffix in ("", ".stockpot.json"):
        kept = (folder / (soup("average") + suffix)).read_bytes()
        changed = kept if suffix else kept[:-1] + bytes([kept[-1] ^ 1])
        (folder / (soup("verify-changed") + suffix)).write_bytes(changed)


# What it is run on

TASK_FILE = '''
"""Ten kinds of small pictures, and a network that tells them apart."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

import stockpot

DATA = np.load(Path(__file__).with_name("data.npz"))
NORM = {"batch": torch.nn.BatchNorm2d, "group": lambda n: torch.nn.GroupNorm(4, n)}["NORM"]


def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1, bias=False),
        NORM(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        NORM(16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )


def part(name):
    return TensorDataset(torch.tensor(DATA[name]), torch.tensor(DATA[name + "-labels"]))


def task_of(train):
    return stockpot.ClassificationTask(
        build=build,
        splits={
            "held-out": stockpot.Split(part("held-out"), role="held-out"),
            "test": stockpot.Split(part("test"), role="test"),
            "noise": stockpot.Split(part("noise"), role="shift", images="test"),
            "older": stockpot.Split(part("older"), role="shift"),
        },
        train_set=part(train),
        version="1",
    )


first = task_of("first")
task = task_of("train")
'''

SCORE_FILE = '''
"""A score without a model: minus the mean square of all values."""

import sys

import numpy as np

with open(sys.argv[1], "rb") as file:
    file.seek(int.from_bytes(file.read(8), "little"), 1)
    values = np.frombuffer(file.read(), np.uint8).astype(np.float64)
print(-float(np.mean(values**2)))
'''

SPACES: Mapping[str, Mapping[str, Any]] = {
    "first.json": {"lr": 0.01, "epochs": 3, "batch_size": 32},
    "space.json": {
        "lr": {"log_uniform": [1e-3, 1e-2]},
        "weight_decay": {"log_uniform": [1e-4, 1e-1]},
        "label_smoothing": {"uniform": [0, 0.2]},
        "mixup": {"mixture": [{"weight": 1, "value": 0}, {"weight": 1, "uniform": [0, 0.5]}]},
        "shift_pixels": {"uniform": [0, 1]},
        "epochs": {"int": [2, 4]},
        "batch_size": 32,
    },
    "averages.json": {
        "lr": {"log_uniform": [1e-3, 1e-2]},
        "epochs": 2,
        "batch_size": 32,
        "ema_decays": 0.9,
    },
}


def write_start(folder: Path, *, norm: str = "group", seed: int = 0) -> None:
    """Everything that takes no training: data, task, spaces, and checkpoints of random numbers.

    With `norm` "group" the network has no running statistics, and no rule about them applies.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "task.py").write_text(TASK_FILE.lstrip().replace('["NORM"]', f'["{norm}"]'))
    (folder / "score.py").write_text(SCORE_FILE.lstrip())
    for name, space in SPACES.items():
        (folder / name).write_text(json.dumps(space))
    data: dict[str, Any] = dict(pictures(rng))
    np.savez(folder / "data.npz", **data)
    plain = folder / "inputs" / "plain"
    plain.mkdir(parents=True)
    shapes = {"in.weight": (256, 300), "in.bias": (256,), "out.weight": (100, 256), "scale": ()}
    base = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_safetensors(plain / "base.safetensors", base)
    for name in ("a", "b", "c"):
        moved = {
            key: (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
            for key, value in base.items()
        }
        write_safetensors(plain / f"{name}.safetensors", moved)
        if name != "c":
            write_safetensors(plain / f"half-{name}.safetensors", moved, half=True)
    odd = {**base, "out.weight": base["out.weight"][:90], "more": base["in.bias"]}
    write_safetensors(plain / "odd.safetensors", odd)
    write_safetensors(folder / "inputs" / "random.safetensors", first_weights(rng, norm))


def pictures(rng: np.random.Generator) -> dict[str, _Array]:
    """Ten patterns in noise; `first` and `older` are of patterns a little different."""
    patterns = rng.standard_normal((10, 1, 8, 8))
    older = patterns + 0.7 * rng.standard_normal(patterns.shape)
    sizes = {"first": 600, "train": 160, "held-out": 240, "test": 240, "older": 160}
    found: dict[str, _Array] = {}
    for name, n in sizes.items():
        labels = np.arange(n) % 10
        ideal = (older if name in ("first", "older") else patterns)[labels]
        noisy = ideal + 1.5 * rng.standard_normal(ideal.shape)
        found |= {name: noisy.astype(np.float32), f"{name}-labels": labels}
    more = found["test"] + rng.standard_normal(found["test"].shape)
    return {**found, "noise": more.astype(np.float32), "noise-labels": found["test-labels"]}


def first_weights(rng: np.random.Generator, norm: str) -> dict[str, _Array]:
    """What the base is trained from: the network of TASK_FILE, with random weights."""
    shapes = {"0.weight": (8, 1, 3, 3), "3.weight": (16, 8, 3, 3), "7.weight": (10, 256)}
    found: dict[str, _Array] = {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    found["7.bias"] = np.zeros(10, np.float32)
    for name, n in (("1", 8), ("4", 16)):
        ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
        found |= {f"{name}.weight": ones, f"{name}.bias": zeros}
        if norm == "batch":
            found |= {f"{name}.running_mean": zeros, f"{name}.running_var": ones}
            found[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return found


def write_safetensors(path: Path, tensors: Mapping[str, _Array], *, half: bool = False) -> None:
    """A safetensors file of float32 and int64, or of the bfloat16 above each float32."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name in sorted(tensors):
        value = np.asarray(tensors[name])
        kind = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}[value.dtype]
        raw = value.tobytes()
        if half:
            kind, raw = "BF16", (np.frombuffer(raw, "<u4") >> 16).astype("<u2").tobytes()
        offsets = [at, at + len(raw)]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def train_inputs(side: Side, place: Path) -> None:
    """A base and five runs from it, by the old checkout."""
    here = ("--workers", "1", "--json")
    first = ("--task", "task.py:first", "--base", "inputs/random.safetensors")
    calls = (
        ("sweep", *first, "-o", "inputs/base", "--space", "first.json", "--runs", "1", *here),
        ("sweep", *TASK, "--base", BASE, "-o", RUNS, "--space", "space.json", "--runs", "5", *here),
    )
    for call in calls:
        made = run_command(side, call, place, place / "cache" / "inputs")
        if made.code != 0:
            raise SystemExit(f"no inputs: stockpot {' '.join(call)}\n{made.stdout}{made.stderr}")
    shutil.rmtree(place / "cache")


# Running


@dataclass(frozen=True)
class Side:
    """One of the two checkouts."""

    name: str
    checkout: Path


@dataclass(frozen=True)
class Outcome:
    """What one call ended with."""

    call: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class Ran:
    """What one case ended with: its calls, and examples that its journal gained meanwhile."""

    outcomes: tuple[Outcome, ...]
    scored: int | None

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)


def environment(side: Side, cache: Path) -> dict[str, str]:
    """The caller's, with this checkout's code, a cache of its own, one thread and no GPU."""
    ours = {
        "PYTHONPATH": str(side.checkout / "src"),
        "STOCKPOT_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONHASHSEED": "0",
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    return {**os.environ, **ours}


def run_command(side: Side, call: tuple[str, ...], place: Path, cache: Path) -> Outcome:
    """One call of the command line, in the folder `place`."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stockpot", *call],
        cwd=place,
        env=environment(side, cache),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=900,
        check=False,
    )
    seconds = time.perf_counter() - started
    return Outcome(call, done.returncode, done.stdout, done.stderr, seconds)


def run_case(side: Side, case: Case, place: Path) -> Ran:
    """All calls of a case; the first that ends as it should not is the last."""
    cache, out = place / "cache" / case.folder, place / "out"
    for folder in {case.folder, case.name}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    if case.before is not None:
        with contextlib.suppress(FileNotFoundError):  # the case that it needs has failed
            case.before(place)
    before = examples_kept(cache)
    outcomes: list[Outcome] = []
    for call in case.calls:
        outcomes.append(run_command(side, (*call, "--json"), place, cache))
        (place / "told").mkdir(exist_ok=True)
        (place / "told" / f"{case.name}.{len(outcomes)}.json").write_text(outcomes[-1].stdout)
        if outcomes[-1].code != case.code:
            break
    after = examples_kept(cache)
    found = Ran(tuple(outcomes), None if before is None or after is None else after - before)
    say(f"{side.name:<4} {case.name:<24} {found.seconds:6.1f} s")
    return found


def examples_kept(cache: Path) -> int | None:
    """How many scored examples and numbers the journals of a cache hold; None if unreadable."""
    found = 0
    for path in cache.rglob("*.sqlite"):
        try:
            with contextlib.closing(sqlite3.connect(path)) as journal:
                query = "SELECT (SELECT COALESCE(SUM(n), 0) FROM outputs), COUNT(*) FROM numbers"
                found += sum(journal.execute(query).fetchone())
        except sqlite3.Error:
            return None
    return found


def run_side(side: Side, cases: Sequence[Case], start: Path, place: Path) -> dict[str, Ran]:
    """All cases in a copy of `start` at `place`, which is then moved aside."""
    shutil.copytree(start, place)
    found = {case.name: run_case(side, case, place) for case in cases}
    name = f"{side.name}-continued" if cases and cases[0].continues else side.name
    place.rename(place.with_name(name))
    return found


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)
