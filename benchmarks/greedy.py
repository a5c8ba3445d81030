"""Greedy soups: what a second worker gains, and the memory that many ingredients take.

    STOCKPOT_DATA=DATA python benchmarks/greedy.py speed --task experiments/cifar_resnet.py:task \
        --runs ../ingredients/sweep-0/resnet/runs --rounds 3

times the soup stage: everything after the single models are scored. One worker of one thread and
two of one thread each alternate, in one process, each time with a journal that knows the single
models and no soup, after both have made a forward pass: start-up is not in it. Both must find the
same soup. Workers divide the examples of a candidate; what trying the candidates side by side would
take at best is computed from the times of the single worker, and stands beside it.

    python benchmarks/greedy.py memory --k 40 --workers 1 2

makes k checkpoints of a text classifier of 22 million parameters in a temporary folder, cooks a
greedy soup of them in a process of its own, and samples the anonymous memory of that process and of
each of its workers, private and shared.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

LENGTH = 32
SIZES = {"22M": (30_522, 384, 36), "tiny": (64, 16, 2)}
"""Words, width and layers of the text classifier; a layer is two square matrices."""


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """One soup stage: its seconds, those of each candidate, which were kept, and the soup."""

    seconds: float
    each: tuple[float, ...]
    accepted: tuple[bool, ...]
    soup: dict[str, Any]


def stage(evaluator: Any, models: Any, singles: Sequence[Any], split: str) -> Stage:
    """Cook a greedy soup with a journal that knows the outputs of the single models alone."""
    import numpy as np

    from stockpot import Greedy
    from stockpot.evaluate import Journal

    evaluator.journal = Journal(None)
    for model, outputs in zip(models, singles, strict=True):
        evaluator.journal.append(evaluator.key(model, split), np.arange(len(outputs)), outputs)
    evaluator.load(models[0])  # nothing of an earlier stage is in the model
    marks: list[float] = []

    def mark(done: int, total: int | None, what: str) -> None:
        if what == "ingredients":
            marks.append(time.perf_counter())

    evaluator.progress = mark
    started = time.perf_counter()
    soup = Greedy(explain=False).cook(models, evaluator=evaluator, report=False)
    seconds = time.perf_counter() - started
    each = tuple(b - a for a, b in zip([started, *marks], marks, strict=False))
    accepted = tuple(step.accepted for step in soup.steps[1:])
    return Stage(seconds, each, accepted, soup.to_json())


def side_by_side(found: Stage, n_workers: int = 2) -> float:
    """Seconds if `n_workers` tried so many candidates at once, from what each took alone.

    Results are taken in order; those after an acceptance were against the wrong soup, and are tried
    again. Nothing is lost to sharing, so this is the best that it could be.
    """
    total, at = found.seconds - sum(found.each), 0
    while at < len(found.each):
        batch = range(at, min(at + n_workers, len(found.each)))
        kept = next((i for i in batch if found.accepted[i]), None)
        used = batch if kept is None else range(at, kept + 1)
        total += max(found.each[i] for i in used)
        at = used[-1] + 1
    return total


def speed(
    task: str, runs: Sequence[str], *, rounds: int, most: int | None, workers: int
) -> dict[str, Any]:
    """Alternated rounds of one worker and of several, one thread each."""
    import torch

    from stockpot import Ingredients, TaskEvaluator
    from stockpot.evaluate import split_to_choose_on
    from stockpot.tasks import resolve

    torch.set_num_threads(1)
    models = Ingredients(runs)
    if most is not None:
        models = Ingredients([model.path for model in models][:most])
    found = resolve(task)
    split = split_to_choose_on(found)
    stages: dict[int, list[Stage]] = {1: [], workers: []}
    with (
        TaskEvaluator(found, device="cpu") as one,
        TaskEvaluator(found, device="cpu", n_workers=workers) as several,
    ):
        singles = [one.predictions(model, split).outputs for model in models]
        several.run(models[0], split, range(64))
        for _ in range(rounds):
            stages[1].append(stage(one, models, singles, split))
            stages[workers].append(stage(several, models, singles, split))
    seconds = {n: statistics.median(s.seconds for s in some) for n, some in stages.items()}
    gains = [a.seconds / b.seconds for a, b in zip(stages[1], stages[workers], strict=True)]
    ahead = [s.seconds / side_by_side(s, workers) for s in stages[1]]
    every = [s.soup for some in stages.values() for s in some]
    return {
        "ingredients": len(models),
        "kept": len(every[0]["selected"]),
        "examples": every[0]["examples_evaluated"],
        "calibration": every[0]["examples_calibration"],
        "workers": workers,
        "seconds": {str(n): s for n, s in seconds.items()},
        "gain": statistics.median(gains),
        "gains": gains,
        "side_by_side_at_best": statistics.median(ahead),
        "same": all(soup == every[0] for soup in every),
    }


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def build(size: str = "22M") -> Any:
    """A text classifier: mean of embeddings, residual layers of two matrices, a linear head."""
    import torch

    words, width, layers = SIZES[size]

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(width)
            self.up = torch.nn.Linear(width, width)
            self.down = torch.nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(words, width)
            self.layers = torch.nn.Sequential(*(Layer() for _ in range(layers)))
            self.head = torch.nn.Linear(width, 10)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.layers(self.embeddings(ids).mean(1)))
            return logits

    return Classifier()


def make_models(folder: Path, k: int, size: str) -> list[str]:
    """k checkpoints near one of random weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = build(size).state_dict()
    paths = []
    for i in range(k):
        generator = torch.Generator().manual_seed(i + 1)
        moved = {
            name: value
            + 0.02 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
            for name, value in base.items()
        }
        paths.append(str(folder / f"run-{i:02}.safetensors"))
        save_file(moved, paths[-1])
    return paths


def make_data(folder: Path, size: str, n: int) -> None:
    """Labels that the base gives, so that the moved models err now and then."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = build(size).eval()
    ids = torch.randint(0, SIZES[size][0], (n, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = torch.cat([model(part) for part in ids.split(250)]).argmax(1)
    save_file({"ids": ids, "labels": labels}, folder / "data.safetensors")


def make_task(folder: Path, size: str) -> Any:
    """The task of the models and the data in a folder."""
    from safetensors.torch import load_file
    from torch.utils.data import TensorDataset

    from stockpot import ClassificationTask, Split

    found = load_file(folder / "data.safetensors")
    data = TensorDataset(found["ids"], found["labels"])
    return ClassificationTask(
        functools.partial(build, size), {"held-out": Split(data, role="held-out")}, batch_size=250,
        version=f"benchmark {size}",
    )  # fmt: skip


@dataclass
class Peaks:
    """Largest private and shared anonymous memory of a process and its children, sampled."""

    process: int
    private: dict[int, int]
    shared: int = 0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.01):
            for pid in [self.process, *_children(self.process)]:
                private, shared = _anonymous(pid)
                self.private[pid] = max(self.private.get(pid, 0), private)
                self.shared = max(self.shared, shared)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _anonymous(pid: int) -> tuple[int, int]:
    """Bytes of private and of shared anonymous memory; a model shared by workers is the latter."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    private, shared = (
        int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem")
    )
    return private, shared


def cook_many(folder: Path, size: str, workers: int) -> dict[str, Any]:
    """In a process of its own: cook, and say how many were kept and what an idle process takes."""
    import torch

    from stockpot import Greedy, TaskEvaluator

    torch.set_num_threads(1)
    task = make_task(folder, size)
    paths = sorted(str(path) for path in folder.glob("run-*.safetensors"))
    data = sum(t.numel() * t.element_size() for t in task.splits["held-out"].dataset.tensors)
    idle = _anonymous(os.getpid())[0]
    started = time.perf_counter()
    with TaskEvaluator(task, device="cpu", n_workers=workers) as evaluator:
        soup = Greedy(explain=False).cook(paths, evaluator=evaluator, report=False)
    return {
        "kept": len(soup.selected),
        "seconds": time.perf_counter() - started,
        "idle_bytes": idle,
        "data_bytes": data,
    }


def memory(*, k: int, workers: Sequence[int], size: str, n: int) -> dict[str, Any]:
    """Peaks for each number of workers."""
    with tempfile.TemporaryDirectory(prefix="stockpot-benchmark-") as folder:
        paths = make_models(Path(folder), k, size)
        make_data(Path(folder), size, n)
        model_bytes = Path(paths[0]).stat().st_size
        rows = []
        for n_workers in workers:
            words = [sys.executable, __file__, "cook", folder, size, str(n_workers)]
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            peaks, stop = Peaks(process.pid, {}), threading.Event()
            watcher = threading.Thread(target=peaks.watch, args=(stop,))
            watcher.start()
            out, _ = process.communicate()
            stop.set()
            watcher.join()
            if process.returncode != 0:
                raise SystemExit("cooking failed")
            own = peaks.private.pop(process.pid)
            # A child below a megabyte is no worker, but a command that a library ran on import.
            private = [own, *(peak for peak in peaks.private.values() if peak > 1 << 20)]
            rows.append(
                {
                    "workers": n_workers,
                    **json.loads(out),
                    "private_bytes": private,
                    "shared_bytes": peaks.shared,
                    "models_worth": (max(private) + peaks.shared) / model_bytes,
                }
            )
    return {"k": k, "model_bytes": model_bytes, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    fast = kinds.add_parser("speed")
    fast.add_argument("--task", required=True, help="as --task of the commands")
    fast.add_argument("--runs", required=True, nargs="+", help="checkpoints, or their folder")
    fast.add_argument("--rounds", type=int, default=3)
    fast.add_argument("--most", type=int, help="use no more checkpoints than these first ones")
    fast.add_argument("--workers", type=int, default=2)
    large = kinds.add_parser("memory")
    large.add_argument("--k", type=int, default=40)
    large.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    large.add_argument("--size", choices=SIZES, default="22M")
    large.add_argument("--examples", type=int, default=2_000)
    for one in (fast, large):
        one.add_argument("--json", type=Path, help="write what was found here")
    given = parser.parse_args(arguments)
    if given.kind == "speed":
        found = speed(
            given.task, given.runs, rounds=given.rounds, most=given.most, workers=given.workers
        )
    else:
        found = memory(k=given.k, workers=given.workers, size=given.size, n=given.examples)
    text = json.dumps(found, indent=2)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["cook"]:
        folder, size, n_workers = sys.argv[2:]
        print(json.dumps(cook_many(Path(folder), size, int(n_workers))))
    else:
        main()
