"""Kill commands at random moments, over and over: is anything half-written, different or left over?

    python experiments/kills.py --kills 100 --results kills.jsonl
    python experiments/kills.py average greedy --kills 10

Each command runs once without being disturbed. Then come chains: it is started, killed at a random
moment by SIGKILL, SIGTERM, SIGHUP or SIGINT, started again, killed again, four times at most, and
at last let through. After each kill the target must be the older output, absent or complete; after
the chain there must be the same files with the same bits as without kills, and no others, also none
in the folder of temporary files, and no process. Evaluations that were made again are counted.

Processes are forked from one that has imported everything, so that the moments fall into the work
and not into two seconds of imports. Results are appended chain by chain, and a run that is given
again goes on behind them.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
CHAIN = 4

TASK = """
import torch
from torch.utils.data import TensorDataset

from stockpot import ClassificationTask, Split

truth = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def data(n, seed, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return TensorDataset(
        x, (x @ truth + noise * torch.randn(n, 3, generator=generator)).argmax(1)
    )


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


task = ClassificationTask(
    build=build,
    splits={
        "val": Split(data(200, 1), role="held-out"),
        "test": Split(data(200, 2), role="test"),
        "noisy": Split(data(200, 3, 2.0), role="shift"),
    },
    train_set=data(256, 4),
    batch_size=20,
)
"""

# Without torch, so that it starts at once. Each run leaves a line, to be counted.
SCORE = """
import os, struct, sys
data = open(sys.argv[1], "rb").read()
(length,) = struct.unpack("<Q", data[:8])
count = (len(data) - 8 - length) // 4
values = struct.unpack(f"<{count}f", data[8 + length :][: 4 * count])
# No file that the command names: it would be taken for a part of the program that has changed.
with open(os.path.join(os.environ["STOCKPOT_KILLS"], sys.argv[2]), "a") as file:
    file.write("run\\n")
print(-sum((v - 0.1) ** 2 for v in values if abs(v) < 10))
"""

LAB = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stockpot.tasks import resolve

folder = Path(sys.argv[1])
task = resolve(f"{folder / 'task.py'}:task")
torch.manual_seed(0)
model = task.build()
x, y = task.train_set.tensors


def train(steps, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        part = torch.randint(0, len(x), (32,), generator=generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()


train(30, 1e-2, 0)
base = {name: value.clone() for name, value in model.state_dict().items()}
save_file(base, folder / "base.safetensors")
for i in range(6):
    model.load_state_dict(base)
    train(20 + 10 * i, 3e-3, i + 1)
    save_file(model.state_dict(), folder / f"run-{i}.safetensors")
    zeros = {n: v.where(v.abs() > 0.3, 0 * v) for n, v in model.state_dict().items()}
    zeros["2.weight"] = torch.randn(400, 400).relu() * (torch.rand(400, 400) > 0.8)
    save_file(zeros, folder / f"sparse-{i}.safetensors")
    big = {f"layer.{k}": torch.randn(500, 500) for k in range(20)}
    save_file(big, folder / f"big-{i}.safetensors")
"""


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        words: its arguments, for a folder of inputs, the folder it works in, and whether it is to
            make the older output, which has other inputs.
        target: what it writes, in the folder it works in.
        grows: whether the target is a folder that fills run by run.
    """

    words: Callable[[Path, Path, bool], list[str]]
    target: str
    grows: bool = False


def _files(lab: Path, stem: str, older: bool) -> list[str]:
    return [str(lab / f"{stem}-{i}.safetensors") for i in ((4, 5, 0) if older else (0, 1, 2, 3))]


def _recipe(name: str, *more: str, base: bool = False) -> Case:
    def words(lab: Path, work: Path, older: bool) -> list[str]:
        given = ["--task", f"{lab / 'task.py'}:task", "--device", "cpu", "--workers", "1"]
        given += ["--base", str(lab / "base.safetensors")] if base else []
        output = ["-o", str(work / "out" / "soup.safetensors"), "--force"]
        return [name, *_files(lab, "run", older), *given, *more, *output]

    return Case(words, "out/soup.safetensors")


def _average(target: str) -> Case:
    return Case(
        lambda lab, work, older: [
            "average", *_files(lab, "big", older), "-o", str(work / target), "--force",
        ],
        target,
    )  # fmt: skip


def _greedy_eval(lab: Path, work: Path, older: bool) -> list[str]:
    program = f"{sys.executable} -I -S {lab / 'score.py'} {{checkpoint}} count"
    words = [
        "greedy",
        *_files(lab, "run", older),
        "--eval",
        program,
        "--eval-test",
        f"{program}-test",
    ]
    return [*words, "-o", str(work / "out" / "soup.safetensors"), "--force"]


def _interpolate(lab: Path, work: Path, older: bool) -> list[str]:
    words = [
        "interpolate",
        str(lab / "base.safetensors"),
        str(lab / f"run-{int(older)}.safetensors"),
    ]
    words += ["--task", f"{lab / 'task.py'}:task", "--device", "cpu"]
    return [*words, "-o", str(work / "out" / "soup.safetensors"), "--force"]


def _diagnose(lab: Path, work: Path, older: bool) -> list[str]:
    words = ["diagnose", *_files(lab, "run", older), "--base", str(lab / "base.safetensors")]
    words += ["--task", f"{lab / 'task.py'}:task", "--device", "cpu", "--budget", "60"]
    return [*words, "-o", str(work / "out" / "page"), "--force"]


def _compress(lab: Path, work: Path, older: bool) -> list[str]:
    given = str(lab / f"sparse-{int(older)}.safetensors")
    return ["compress", given, "-o", str(work / "out" / "small.safetensors"), "--force"]


def _sparse(lab: Path, work: Path, older: bool) -> list[str]:
    words = ["sparse", str(lab / "run-0.safetensors"), "--task", f"{lab / 'task.py'}:task"]
    words += ["--sparsity", "0.5", "--phases", "2", "--candidates", "2", "--epochs", "2"]
    words += ["--original-epochs", "2", "--lr-max", "1e-2", "--weight-decay", "0"]
    words += ["--train-batch-size", "32", "--workers", "1", "--seed", str(int(older))]
    words += ["--device", "cpu", "--work", str(work / f"work-{int(older)}")]
    return [*words, "-o", str(work / "out" / "sparse.safetensors"), "--force"]


def _sweep(lab: Path, work: Path, older: bool) -> list[str]:
    words = ["sweep", "--task", f"{lab / 'task.py'}:task", "--base", str(lab / "base.safetensors")]
    words += [
        "--runs",
        "3",
        "--space",
        str(lab / "space.yaml"),
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    return [*words, "-o", str(work / "out" / "runs")]


def _demo(lab: Path, work: Path, older: bool) -> list[str]:
    return ["demo", "--quick", "-o", str(work / "out" / "demo"), "--workers", "1"]


CASES = {
    "average": _average("out/soup.safetensors"),
    "average-folder": _average("out/soup"),
    "greedy": _recipe("greedy"),
    "greedy-eval": Case(_greedy_eval, "out/soup.safetensors"),
    "pruned": _recipe("pruned"),
    "learned": _recipe("learned", "--epochs", "10"),
    "interpolate": Case(_interpolate, "out/soup.safetensors"),
    "trajectory": _recipe("trajectory"),
    "auto": _recipe("auto", "--alphas", "0,0.5,1", base=True),
    "diagnose": Case(_diagnose, "out/page"),
    "compress": Case(_compress, "out/small.safetensors"),
    "sparse": Case(_sparse, "out/sparse.safetensors"),
    "sweep": Case(_sweep, "out/runs", grows=True),
    "demo": Case(_demo, "out/demo", grows=True),
}  # fmt: skip


@dataclass
class Chain:
    """What one chain of kills left.

    Attributes:
        case: of `CASES`.
        number: of the chain; its moments follow from it.
        kills: signal, seconds after the start, and what was at the target, for each kill.
        repeated: examples scored, or programs run, more often than without kills.
        problems: what must not be.
    """

    case: str
    number: int
    kills: list[tuple[str, float, str]] = field(default_factory=list)
    repeated: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plain:
    """What a run that nobody disturbed left: seconds, files by name, and what was scored."""

    seconds: float
    files: dict[str, str]
    scored: collections.Counter[object]


def make_lab(folder: Path) -> None:
    """A task, checkpoints, a program that scores, a space."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.py").write_text(TASK)
    (folder / "score.py").write_text(SCORE)
    (folder / "space.yaml").write_text("lr: {log_uniform: [1e-3, 1e-2]}\nepochs: 2\n")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", LAB, str(folder)], check=True, env={**os.environ, "PYTHONPATH": path}
    )


def start(words: list[str], work: Path) -> int:
    """The process id of the command, forked from this process, in a session of its own."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        for number in SIGNALS[1:3]:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(
            TMPDIR=str(work / "tmp"), STOCKPOT_CACHE=str(work / "cache"), STOCKPOT_KILLS=str(work)
        )
        tempfile.tempdir = None
        log = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from stockpot.cli import main

        code = main(words)
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def wait(process: int, seconds: float) -> int | None:
    """The exit status of a process that ends within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def prepare(work: Path) -> None:
    """An empty folder to work in."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("out", "tmp", "cache"):
        (work / name).mkdir(parents=True)


def through(case: Case, lab: Path, work: Path, *, older: bool = False) -> float:
    """Let the command run to its end; seconds."""
    began = time.perf_counter()
    status = wait(start(case.words(lab, work, older), work), 600)
    if status != 0:
        log = work / "log"
        said = log.read_text(errors="replace") if log.exists() else "nothing"
        raise RuntimeError(f"status {status}: {said[-2000:]}")
    return time.perf_counter() - began


def found_files(work: Path) -> dict[str, str]:
    """Every file but those of the caches, with a digest of what it says beyond times."""
    found = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if name.startswith("cache/") and ".new-" not in name and ".stockpot-" not in name:
            continue
        if path.is_file() and name not in ("log", "count", "count-test"):
            found[name] = hashlib.sha256(_content(path)).hexdigest()
    return found


def _content(path: Path) -> bytes:
    if path.suffix == ".parquet":  # holds seconds; the same rows are in runs.jsonl
        return b""
    if path.suffix == ".sqlite":  # a journal: what was scored, not when, nor in how many parts
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as db:
            return repr(sorted(db.execute("SELECT key FROM entries"))).encode()
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return data
    with contextlib.suppress(ValueError):
        return json.dumps([_timeless(json.loads(line)) for line in _documents(data, path)]).encode()
    return data


def _documents(data: bytes, path: Path) -> Iterator[bytes]:
    yield from data.splitlines() if path.suffix == ".jsonl" else [data]


def _timeless(value: object) -> object:
    """JSON without what says how long something took, or how much memory."""
    if isinstance(value, dict):
        return {
            k: _timeless(v)
            for k, v in sorted(value.items())
            if "seconds" not in k and "peak" not in k
        }
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def scored(work: Path) -> collections.Counter[object]:
    """How often each example of each model was scored, and how often programs were run."""
    found: collections.Counter[object] = collections.Counter()
    for name in ("count", "count-test"):
        if (work / name).exists():
            found[name] = len((work / name).read_text().splitlines())
    journal = work / "cache" / "journal.sqlite"
    if journal.exists():
        with contextlib.closing(sqlite3.connect(journal, timeout=60)) as db:
            for key, positions in db.execute("SELECT key, positions FROM outputs"):
                found.update((key, int(i)) for i in np.frombuffer(positions, "<i8"))
    return found


def state_of(case: Case, before: dict[str, str], now: dict[str, str], done: dict[str, str]) -> str:
    """What is at the target: old, absent, complete, growing, or a part."""

    def at_target(files: dict[str, str]) -> dict[str, str]:
        return {
            name: digest for name, digest in files.items()
            if name == case.target or name.startswith(case.target + "/")
        }  # fmt: skip

    found = at_target(now)
    if found == at_target(done):
        return "complete"
    if found == at_target(before):
        return "old" if found else "absent"
    if case.grows:
        # Finished files are as they will be; lists and the states of work under way may differ.
        final = {n for n in found if n.endswith(".safetensors") and n in done}
        if all(found[name] == done[name] for name in final):
            return "growing"
    return "a part"


def survivors(work: Path, seconds: float) -> list[str]:
    """Commands of processes that a killed one left and that do not end within so many seconds."""
    mark = f"STOCKPOT_KILLS={work}".encode()
    until = time.monotonic() + seconds
    while True:
        left = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                    left.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def chain(name: str, number: int, lab: Path, work: Path, plain: Plain) -> Chain:
    """Kill the command up to `CHAIN` times at random moments, then let it through."""
    case, rng, found = CASES[name], random.Random(f"{name} {number}"), Chain(name, number)
    prepare(work)
    if number % 2 and not case.grows:
        through(case, lab, work, older=True)
        for extra in ("count", "count-test"):
            (work / extra).unlink(missing_ok=True)
        for place in [work / "cache", *work.glob("work-*")]:
            shutil.rmtree(place)
        (work / "cache").mkdir()
    before = found_files(work)
    for k in range(CHAIN):
        sent = SIGNALS[(number + k) % len(SIGNALS)]
        after = rng.random() * plain.seconds
        process = start(case.words(lab, work, False), work)
        ended = wait(process, after) is not None
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, sent)
            if wait(process, 30) is None:
                found.problems.append(f"still running 30 s after {sent.name}")
                os.kill(process, signal.SIGKILL)
                wait(process, 30)
            found.problems += [f"left the process {one}" for one in survivors(work, 15)]
            state = state_of(case, before, found_files(work), plain.files)
            found.kills.append((sent.name, round(after, 3), state))
            if state == "a part":
                found.problems.append(f"a part of the output after {sent.name} at {after:.3f} s")
            if sent is not signal.SIGKILL:
                left = [n for n in found_files(work) if n.startswith("tmp/")]
                found.problems += [f"{sent.name} left {one}" for one in left if k == 0]
        else:
            break
    try:
        through(case, lab, work)
    except RuntimeError as error:
        found.problems.append(f"was not completed: {error}")
        return found
    done = found_files(work)
    for file in sorted(done.keys() | plain.files.keys()):
        if done.get(file) != plain.files.get(file):
            kind = "is another" if file in done and file in plain.files else "is left over"
            found.problems.append(f"{file} {kind if file in done else 'is missing'}")
    again = scored(work) - plain.scored
    found.repeated = again.total()
    if plain.scored - scored(work):
        found.problems.append("some of what was scored is missing")
    return found


def undisturbed(case: Case, lab: Path, work: Path) -> Plain:
    """What the command leaves without kills."""
    prepare(work)
    seconds = through(case, lab, work)
    return Plain(seconds, found_files(work), scored(work))


def summary(chains: Sequence[Chain]) -> str:
    """One line for each command, as a Markdown table."""
    lines = ["| command | kills | old | absent | growing | complete | repeated | problems |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(one.case for one in chains):
        own = [one for one in chains if one.case == name]
        states = collections.Counter(state for one in own for _, _, state in one.kills)
        cells = [str(states[s]) for s in ("old", "absent", "growing", "complete")]
        again, wrong = sum(one.repeated for one in own), sum(bool(one.problems) for one in own)
        lines.append(f"| {name} | {states.total()} | {' | '.join(cells)} | {again} | {wrong} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("commands", nargs="*", help="of: " + ", ".join(CASES))
    parser.add_argument("--kills", type=int, default=100, help="of each; of demo a fifth")
    parser.add_argument("--results", type=Path, help="append every chain here, and go on behind it")
    given = parser.parse_args(arguments)
    names = given.commands or list(CASES)
    lines = (
        given.results.read_text().splitlines() if given.results and given.results.exists() else []
    )
    chains = [Chain(**json.loads(line)) for line in lines]
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in ("cli.analyse", "cli.files", "cli.recipes", "cli.train", "demo", "report"):
        importlib.import_module(f"stockpot.{module}")  # once, for all that are forked

    # No TemporaryDirectory: what is forked would remove it at its own end.
    scratch = tempfile.mkdtemp(prefix="kills-")
    try:
        lab, work = Path(scratch, "lab"), Path(scratch, "work")
        make_lab(lab)
        for name in names:
            wanted = given.kills // (5 if name == "demo" else 1)
            own = [one for one in chains if one.case == name]
            killed, number = sum(len(one.kills) for one in own), len(own)
            if killed >= wanted:
                continue
            plain = undisturbed(CASES[name], lab, work)
            while killed < wanted:
                made = chain(name, number, lab, work, plain)
                chains.append(made)
                number, killed = number + 1, killed + len(made.kills)
                if given.results:
                    with given.results.open("a") as file:
                        file.write(json.dumps(asdict(made)) + "\n")
                for problem in made.problems:
                    print(f"{name} {made.number}: {problem}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(summary([one for one in chains if one.case in names]))
    return int(any(one.problems for one in chains if one.case in names))


if __name__ == "__main__":
    sys.exit(main())
