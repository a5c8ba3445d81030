"""One step of the library's loop against a hand-written minimal loop of the same model and batch.

    python benchmarks/training.py [--steps 300] [--rounds 5] [--batch-size 32] [--threads 1]

Both train the handwriting network from the same weights on the same examples with AdamW, and do the
same to batches and weights: nothing more, clipping, label smoothing with mixup and movements, two
exponential averages (torch's `AveragedModel`, by hand). They take turns, and the ratio is the
median over rounds. The goal is at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stockpot import ClassificationTask, TrainConfig, fine_tune
from stockpot.tasks.handwriting import base_task, initial_weights


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


@dataclass(frozen=True)
class Work:
    """What a step does besides forward, backward and update."""

    clip: float | None = 1.0
    smoothing: float = 0.0
    mixup: float = 0.0
    shift_pixels: float = 0.0
    rotate_degrees: float = 0.0
    ema_decays: tuple[float, ...] = ()


KINDS = {
    "plain": Work(clip=None),
    "clipping": Work(),
    "label smoothing, mixup, movement": Work(
        smoothing=0.1, mixup=0.4, shift_pixels=1.0, rotate_degrees=10.0
    ),
    "two EMAs": Work(ema_decays=(0.99, 0.999)),
}


def minimal(task: ClassificationTask, work: Work, steps: int, batch_size: int) -> Cost:
    """The shortest loop that does the same work."""
    model = task.build()
    model.load_state_dict(initial_weights(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    averages = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        for decay in work.ema_decays
    ]
    inputs, targets = task.train_set.tensors
    per_epoch = len(inputs) // batch_size
    model.train()
    meter = Meter()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(inputs))
        at = step % per_epoch * batch_size
        rows = order[at : at + batch_size]
        x, y = inputs[rows], targets[rows]
        if work.shift_pixels:
            x = moved(x, work)
        if work.mixup:
            share = float(torch.distributions.Beta(work.mixup, work.mixup).sample())
            partner = torch.randperm(batch_size)
            x = x.lerp(x[partner], 1 - share)
        logits = model(x)
        loss = functional.cross_entropy(logits, y, label_smoothing=work.smoothing)
        if work.mixup:
            other = functional.cross_entropy(logits, y[partner], label_smoothing=work.smoothing)
            loss = share * loss + (1 - share) * other
        loss.backward()
        if work.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages:
            average.update_parameters(model)
        meter()
    return meter.cost


def moved(images: torch.Tensor, work: Work) -> torch.Tensor:
    """Square images, each turned and shifted by amounts of its own."""
    n, side = len(images), images.shape[-1]
    draws = torch.rand(n, 3) * 2 - 1
    angle = draws[:, 0] * math.radians(work.rotate_degrees)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 1, 0] = angle.sin()
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = draws[:, 1:] * 2 * work.shift_pixels / side
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def ours(task: ClassificationTask, work: Work, steps: int, batch_size: int) -> Cost:
    """`fine_tune`, its saving of states included."""
    per_epoch = len(task.train_set) // batch_size
    config = TrainConfig(
        lr=1e-3, schedule="constant", epochs=-(-steps // per_epoch), max_steps=steps,
        batch_size=batch_size, clip_norm=work.clip, label_smoothing=work.smoothing,
        mixup=work.mixup, shift_pixels=work.shift_pixels, rotate_degrees=work.rotate_degrees,
        ema_decays=work.ema_decays,
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
    minimal(task, KINDS["plain"], 20, args.batch_size)
    pairs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in KINDS}
    for _ in range(args.rounds):
        for name, work in KINDS.items():
            by_hand = minimal(task, work, args.steps, args.batch_size)
            pairs[name].append((ours(task, work, args.steps, args.batch_size), by_hand))
    found = {}
    for name, costs in pairs.items():
        row = {
            "minimal_ms": 1000 * statistics.median(m.wall for _, m in costs),
            "stockpot_ms": 1000 * statistics.median(c.wall for c, _ in costs),
            "ratio": statistics.median(c.wall / m.wall for c, m in costs),
            "ratio_of_processor_time": statistics.median(
                c.processor / m.processor for c, m in costs
            ),
        }
        found[name] = {key: round(value, 3) for key, value in row.items()}
    print(json.dumps({"batch_size": args.batch_size, "threads": args.threads, **found}, indent=2))


if __name__ == "__main__":
    main()
