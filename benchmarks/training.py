"""One step of the library's loop against a hand-written minimal loop of the same model and batch.

    python benchmarks/training.py [--steps 300] [--rounds 5] [--batch-size 32] [--threads 1]

Both train the handwriting network from the same weights on the same examples with AdamW and
clipping; they take turns, and the ratio is the median over rounds. The goal is at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from stockpot.models.classification import ClassificationTask
from stockpot.tasks.handwriting import base_task, initial_weights
from stockpot.training import TrainConfig, fine_tune


@dataclass(frozen=True)
class Cost:
    """Seconds per step: of the clock, and of the processor, which other programs disturb less."""

    wall: float
    processor: float


class Meter:
    """Times steps between its first and its last call."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def __call__(self, *_: object) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    @property
    def cost(self) -> Cost:
        (wall, processor), (wall_end, processor_end) = self.marks[0], self.marks[-1]
        steps = len(self.marks) - 1
        return Cost((wall_end - wall) / steps, (processor_end - processor) / steps)


def minimal(task: ClassificationTask, steps: int, batch_size: int) -> Cost:
    """The shortest loop that does the same work."""
    model = task.build()
    model.load_state_dict(initial_weights(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = task.train_set.tensors
    per_epoch = len(inputs) // batch_size
    model.train()
    meter = Meter()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(inputs))
        at = step % per_epoch * batch_size
        rows = order[at : at + batch_size]
        loss = functional.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        meter()
    return meter.cost


def ours(task: ClassificationTask, steps: int, batch_size: int, **fields: object) -> Cost:
    """`fine_tune`, its saving of states included."""
    per_epoch = len(task.train_set) // batch_size
    config = TrainConfig(
        lr=1e-3, schedule="constant", epochs=-(-steps // per_epoch), max_steps=steps,
        batch_size=batch_size, **fields,
    )  # fmt: skip
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            task, initial_weights(0), config, out=Path(folder) / "run.safetensors", device="cpu",
            score=lambda model: {"none": 0.0}, progress=meter,
        )  # fmt: skip
    return meter.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = base_task(n_train=3200, n_held_out=32)
    minimal(task, 20, args.batch_size)
    kinds = {
        "plain": {},
        "label smoothing, mixup, movement": {
            "label_smoothing": 0.1, "mixup": 0.4, "shift_pixels": 1.0, "rotate_degrees": 10.0,
        },
        "two EMAs": {"ema_decays": (0.99, 0.999)},
    }  # fmt: skip
    times: dict[str, list[Cost]] = {name: [] for name in ("minimal", *kinds)}
    for _ in range(args.rounds):
        times["minimal"].append(minimal(task, args.steps, args.batch_size))
        for name, fields in kinds.items():
            times[name].append(ours(task, args.steps, args.batch_size, **fields))
    found = {}
    for name, costs in times.items():
        row = {"ms_per_step": 1000 * statistics.median(c.wall for c in costs)}
        pairs = list(zip(costs, times["minimal"], strict=True))
        row["ratio"] = statistics.median(c.wall / m.wall for c, m in pairs)
        row["ratio_of_processor_time"] = statistics.median(
            c.processor / m.processor for c, m in pairs
        )
        found[name] = {key: round(value, 3) for key, value in row.items()}
    print(json.dumps({"batch_size": args.batch_size, "threads": args.threads, **found}, indent=2))


if __name__ == "__main__":
    main()
