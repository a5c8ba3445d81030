"""What a WiSE-FT curve costs beside evaluating a model that is kept in memory as often.

    python -m benchmarks.interpolate --data DATA --folder /tmp/interpolate

draws the curve of 21 α between the published ResNet-20 and a short fine-tune of it on the JPEG copy
of CIFAR-10, with everything that `stockpot interpolate` tells of it (intervals, gains, ensemble,
diversity, barrier) and a journal on disk. The reference is the loop that one would write by hand:
one model, its batches ready in memory, 21 times every split, and for the 19 inner points the
BatchNorm statistics from the calibration images; no weights are read or mixed, no interval
computed. Methods alternate; ratios are of neighbours, in wall time and in processor time of one
thread, which hardly changes when others use the machine. `--no-batchnorm` leaves recalibration out
of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.common import ALPHAS as GRID
from experiments.ingredients import first_examples
from torch.optim.swa_utils import update_bn

import stockpot
from experiments import cifar_resnet
from stockpot import train as training


def tuned(task: stockpot.Task, base: Path, folder: Path, *, steps: int) -> Path:
    """A fine-tune of `base`, made once."""
    path = folder / "tuned.safetensors"
    if not path.exists():
        config = training.TrainConfig(
            optimizer="sgd", lr=0.01, batch_size=128, epochs=1, max_steps=steps, score_every=2
        )
        training.fine_tune(task, base, config, out=path, seed=0, device="cpu")
    return path


def part(task: stockpot.ClassificationTask, n: int, *, batchnorm: bool) -> stockpot.Task:
    """At most `n` examples of held-out and test, and as many to recalibrate with."""
    kept = dataclasses.replace(
        task,
        splits={name: task.splits[name] for name in ("held-out", "test")},
        train_set=None,
        calibration_set=task.calibration_set if batchnorm else None,
    )
    if batchnorm:
        calibration: Any = task.calibration_set  # torch's Dataset declares no length
        images = torch.utils.data.Subset(calibration, range(min(n, len(calibration))))
        kept = dataclasses.replace(kept, calibration_set=images)
    return first_examples(kept, n)


class Clock:
    """Wall time and processor time of this process since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        """Both; the processor's hardly changes when others use the machine."""
        wall, cpu = self.started
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


Seconds = dict[str, float]


def curve_seconds(task: stockpot.Task, base: Path, path: Path) -> tuple[Seconds, dict[str, Any]]:
    """Seconds of the whole curve with an empty journal, and what it told."""
    with tempfile.TemporaryDirectory() as cache:
        clock = Clock()
        with stockpot.TaskEvaluator(task, cache=cache, device="cpu") as evaluator:
            soup = stockpot.WiseFT(alphas=GRID).cook([path], base=base, evaluator=evaluator)
        return clock.seconds(), soup.to_json()


def plain_seconds(task: stockpot.Task, weights: Path) -> tuple[Seconds, float]:
    """Seconds of 21 evaluations of one model by hand, and its accuracy on held-out."""
    model = task.build().eval()
    given = stockpot.open(weights)
    model.load_state_dict({name: given.read(name) for name in given})
    batches = {
        name: list(task.batches(split.dataset, batch_size=task.batch_size))
        for name, split in task.splits.items()
    }
    found: dict[str, float] = {}
    clock = Clock()
    for number in range(len(GRID)):
        if task.calibration_set is not None and 0 < number < len(GRID) - 1:
            update_bn((x for x, *_ in task.batches(task.calibration_set)), model)
            model.eval()
        with torch.inference_mode():
            for name, ready in batches.items():
                right = sum(int((model(x).argmax(1) == y).sum()) for x, y in ready)
                found.setdefault(name, right / sum(len(y) for _, y in ready))
    return clock.seconds(), found["held-out"]


def main(
    arguments: Sequence[str] | None = None,
    *,
    depth: int = 20,
    n_train: int = 2_000,
    n_held_out: int = cifar_resnet.N_HELD_OUT,
) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the two checkpoints")
    parser.add_argument("--examples", type=int, default=1000, help="of each split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of the fine-tune")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-batchnorm", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="make the checkpoints, no more")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    whole = cifar_resnet.make_task(
        options.data, depth=depth, n_train=n_train, n_held_out=n_held_out
    )
    base = options.folder / "base.safetensors"
    if not base.exists():
        from safetensors.torch import save_file

        save_file(cifar_resnet.base(options.data, depth=depth), base)
    path = tuned(whole, base, options.folder, steps=options.steps)
    if options.prepare:
        return {}
    task = part(whole, options.examples, batchnorm=not options.no_batchnorm)
    curve_seconds(task, base, path)  # decodes images, imports, fills caches
    rounds = []
    for _ in range(options.rounds):
        plain, accuracy = plain_seconds(task, base)
        curve, told = curve_seconds(task, base, path)
        assert told["curve"][0]["scores"]["held-out"]["value"] == accuracy
        ratios = {f"{kind}_ratio": curve[kind] / plain[kind] for kind in curve}
        rounds.append({"curve": curve, "plain": plain, **ratios})
        print(json.dumps(rounds[-1]), file=sys.stderr)
    result = {
        # torch's Dataset declares no length.
        "examples": {name: len(s.dataset) for name, s in task.splits.items()},  # type: ignore[arg-type]
        "recalibration": task.calibration_set is not None,
        "alphas": len(GRID),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "rounds": rounds,
        "wall_ratio": statistics.median(r["wall_ratio"] for r in rounds),
        "cpu_ratio": statistics.median(r["cpu_ratio"] for r in rounds),
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
