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
from pathlib import Path

import torch
from torch.nn import functional

from stockpot.models.classification import ClassificationTask
from stockpot.tasks.handwriting import base_task, initial_weights
from stockpot.training import TrainConfig, fine_tune


def minimal(task: ClassificationTask, steps: int, batch_size: int) -> float:
    """Seconds per step of the shortest loop that does the same work."""
    model = task.build()
    model.load_state_dict(initial_weights(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = task.train_set.tensors
    per_epoch = len(inputs) // batch_size
    model.train()
    started = time.perf_counter()
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
    return (time.perf_counter() - started) / steps


def ours(task: ClassificationTask, steps: int, batch_size: int, **fields: object) -> float:
    """Seconds per step of `fine_tune`, loading and saving apart."""
    per_epoch = len(task.train_set) // batch_size
    config = TrainConfig(
        lr=1e-3, schedule="constant", epochs=-(-steps // per_epoch), max_steps=steps,
        batch_size=batch_size, **fields,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = fine_tune(
            task, initial_weights(0), config, out=Path(folder) / "run.safetensors", device="cpu",
            score=lambda model: {"none": 0.0},
        )  # fmt: skip
    return result.seconds / result.n_steps


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
    times: dict[str, list[float]] = {name: [] for name in ("minimal", *kinds)}
    for _ in range(args.rounds):
        times["minimal"].append(minimal(task, args.steps, args.batch_size))
        for name, fields in kinds.items():
            times[name].append(ours(task, args.steps, args.batch_size, **fields))
    found = {
        name: {
            "ms_per_step": round(1000 * statistics.median(values), 3),
            "ratio": round(
                statistics.median(v / m for v, m in zip(values, times["minimal"], strict=True)), 3
            ),
        }
        for name, values in times.items()
    }
    print(json.dumps({"batch_size": args.batch_size, "threads": args.threads, **found}, indent=2))


if __name__ == "__main__":
    main()
