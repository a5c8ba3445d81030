"""What a mask costs a training step, and what a second worker gains a sparse soup.

    python benchmarks/sparse.py step [--device cpu] [--rounds 5]

trains the handwriting network at batch 64 and a ResNet-20 at batch 128 with the library's loop,
with a mask of 90 % and without, in turns, and tells the median over rounds of the ratio of seconds
per step, of the clock and of the processor; checking the mask once an epoch is part of them. The
goal is at most 1.1.

    python benchmarks/sparse.py workers [--epochs 200] [--candidates 4]

times a phase of a sparse soup of the handwriting network on one worker and on two, one thread in
each, in turns: the whole of `cook`, and what of it grows with the work, which is the whole less
that of a phase of one epoch (starting the workers, loading data, scoring, averaging). The goal is
that the latter is at least 1.7 times faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

import torch  # noqa: E402
from experiments.cifar_resnet import ResNet  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

import stockpot  # noqa: E402
from stockpot import Mask, TrainConfig, fine_tune  # noqa: E402
from stockpot.tasks.handwriting import FULL, QUICK, initial_weights, make_base, make_network  # noqa: E402
from stockpot.train import Magnitude, prunable_names  # noqa: E402
from stockpot.workers import WorkerOptions  # noqa: E402

SPARSITY = 0.9


@dataclass(frozen=True)
class Case:
    """A network and its batches; `steps` are timed after as many as warm it up."""

    name: str
    shape: tuple[int, ...]
    batch_size: int
    steps: int
    resnet: bool

    def build(self) -> torch.nn.Module:
        return ResNet(20) if self.resnet else make_network()

    def weights(self) -> Mapping[str, torch.Tensor]:
        if not self.resnet:
            return initial_weights(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ResNet(20).state_dict()

    def task(self, steps: int) -> stockpot.ClassificationTask:
        """Random images; an epoch has `steps` steps, at most 50."""
        n = self.batch_size * min(steps, 50)
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(
            torch.rand(n, *self.shape, generator=generator),
            torch.randint(0, 10, (n,), generator=generator),
        )
        return stockpot.ClassificationTask(
            build=self.build, splits={"none": stockpot.Split(data)}, train_set=data,
            batch_size=self.batch_size, version="1",
        )  # fmt: skip


def seconds_per_step(case: Case, steps: int, mask: Mask | None, device: str) -> tuple[float, float]:
    """Of the clock, and of the processor, which other programs disturb less.

    They are those of the second half of a run of 2 · `steps`; the first half warms up.
    """
    marks: list[tuple[float, float]] = []

    def mark(done: int, total: int | None, what: str) -> None:
        if done in (steps, 2 * steps):
            if device != "cpu":
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), time.process_time()))

    task = case.task(steps)
    per_epoch = min(steps, 50)
    config = TrainConfig(
        optimizer="sgd" if case.resnet else "adamw", lr=1e-3, weight_decay=1e-3,
        schedule="constant", epochs=-(-2 * steps // per_epoch), max_steps=2 * steps,
        score_every=10**6,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            task, case.weights(), config, out=Path(folder) / "run.safetensors", device=device,
            pruning=mask, score=lambda _: {}, progress=mark,
        )  # fmt: skip
    (wall, processor), (wall_end, processor_end) = marks
    return (wall_end - wall) / steps, (processor_end - processor) / steps


def mask_of(case: Case) -> Mask:
    weights = case.weights()
    return Magnitude().select({n: weights[n] for n in prunable_names(case.build())}, SPARSITY)


def time_steps(cases: Sequence[Case], *, rounds: int, device: str) -> list[dict[str, Any]]:
    """Milliseconds per step, unmasked and masked, and their ratio; medians over rounds."""
    rows = []
    for case in cases:
        mask = mask_of(case)
        pairs = [
            [seconds_per_step(case, case.steps, m, device) for m in (None, mask)]
            for _ in range(rounds)
        ]
        ratios = [masked[0] / plain[0] for plain, masked in pairs]
        of_processor = [masked[1] / plain[1] for plain, masked in pairs]
        rows.append(
            {
                "network": case.name, "batch": case.batch_size, "steps": case.steps,
                "plain_ms": 1000 * statistics.median(plain[0] for plain, _ in pairs),
                "masked_ms": 1000 * statistics.median(masked[0] for _, masked in pairs),
                "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                "processor_ratio": statistics.median(of_processor),
                "processor_lowest": min(of_processor), "processor_highest": max(of_processor),
            }
        )  # fmt: skip
    return rows


def phase_seconds(
    base: Path, task: stockpot.Task, place: Path, *, epochs: int, candidates: int, n_workers: int
) -> float:
    """Of `run`: one phase, in a folder and with a journal of its own."""
    recipe = stockpot.SparseSoup(
        sparsity=SPARSITY, n_phases=1, n_candidates=candidates, epochs=epochs, lr_max=1e-3,
        batch_size=32,
    )  # fmt: skip
    with stockpot.TaskEvaluator(task, cache=place / "cache") as judge:
        started = time.perf_counter()
        recipe.run(
            base, task, evaluator=judge, folder=place / "work", device="cpu",
            workers=WorkerOptions(n_workers=n_workers),
        )  # fmt: skip
        return time.perf_counter() - started


def time_workers(
    *, epochs: int, candidates: int, rounds: int, quick: bool = False
) -> list[dict[str, Any]]:
    """Seconds of one phase on one worker and on two, in turns, and how many times faster."""
    lab = QUICK if quick else FULL
    task, rows = lab.task(seed=0), []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.safetensors"
        make_base(base, lab)
        for number in range(rounds):
            row: dict[str, Any] = {}
            for n_workers in (1, 2):
                whole, fixed = (
                    phase_seconds(
                        base, task, Path(folder) / f"{number}-{n_workers}-{some}", epochs=some,
                        candidates=candidates, n_workers=n_workers,
                    )
                    for some in (epochs, 1)
                )  # fmt: skip
                row[f"whole_{n_workers}"] = whole
                row[f"work_{n_workers}"] = whole - fixed
            row["whole"] = row["whole_1"] / row["whole_2"]
            row["work"] = row["work_1"] / row["work_2"]
            rows.append(row)
    return rows


CASES = (
    Case("handwriting", (1, 8, 8), 64, 300, resnet=False),
    Case("ResNet-20", (3, 32, 32), 128, 12, resnet=True),
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("step", "workers"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a few steps; the times mean nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.what == "step":
        cases = CASES if options.device == "cpu" else [
            Case(c.name, c.shape, c.batch_size, 300, c.resnet) for c in CASES
        ]  # fmt: skip
        if options.quick:
            cases = [Case(c.name, c.shape, 4, 2, c.resnet) for c in CASES]
        rows = time_steps(cases, rounds=options.rounds or 5, device=options.device)
    else:
        rows = time_workers(
            epochs=options.epochs, candidates=options.candidates, rounds=options.rounds or 3,
            quick=options.quick,
        )  # fmt: skip
    return {
        "what": options.what, "device": options.device, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "rows": rows,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
