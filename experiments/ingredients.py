"""Make, or go on making, the ingredients that the reference experiments average.

    python -m experiments.ingredients --data ../shared/data --out ../ingredients

writes, per experiment, `base.safetensors`, `runs/run-00.safetensors`… and `runs/run-00.json`… with
hyper-parameters, seed, scores by epoch and the time it took. What is already there is kept, a run
that was killed goes on from its last epoch, and `--most N` stops after N more runs. A run takes one
or two minutes of one core: two at once, about 40 minutes for all of them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stockpot
from experiments import cifar_resnet, sst2_minilm
from stockpot import training
from stockpot._io import write_json

SWEEP_SEED = 0


@dataclass(frozen=True)
class Experiment:
    """How the ingredients of one experiment are made.

    `draw(rng)` gives the hyper-parameters of one run, `start(data, run)` the weights that it starts
    from: the same for all runs, or one's own for the control that must not average.
    """

    name: str
    n_runs: int
    make_task: Callable[[Path], stockpot.Task]
    start: Callable[[Path, int], Mapping[str, torch.Tensor]]
    draw: Callable[[np.random.Generator], dict[str, Any]]
    shares_start: bool = True


def draw_image(rng: np.random.Generator) -> dict[str, Any]:
    """SGD or AdamW, learning rate, decay, label smoothing, small shifts, two or three epochs."""
    sgd = bool(rng.random() < 2 / 3)
    return {
        "optimizer": "sgd" if sgd else "adamw",
        "lr": log_uniform(rng, 0.005, 0.05) if sgd else log_uniform(rng, 3e-4, 2e-3),
        "weight_decay": log_uniform(rng, 1e-4, 2e-3) if sgd else log_uniform(rng, 1e-4, 1e-1),
        "label_smoothing": 0.0 if rng.random() < 0.5 else float(rng.uniform(0, 0.2)),
        "shift_pixels": float(rng.choice([0.0, 2.0])),
        "epochs": int(rng.choice([2, 3])),
        "batch_size": 128,
        "warmup_fraction": 0.1,
        "precision": "bf16",
        "ema_decays": (0.99,),
        "swa_start_epoch": 1,
    }


def draw_scratch(rng: np.random.Generator) -> dict[str, Any]:
    """One setting for all: only seed and initialisation differ."""
    return {
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "epochs": 3,
        "batch_size": 128,
        "warmup_fraction": 0.1,
        "precision": "bf16",
    }


def draw_text(rng: np.random.Generator, *, most_examples: int) -> dict[str, Any]:
    """Learning rates 1e-6 to 1e-3, batches of 8 to 64, 2 to 5 epochs, as on GLUE; then cut.

    A run ends after 250 steps or `most_examples`, schedule included: two cores have to do.
    """
    lr = log_uniform(rng, 1e-6, 1e-3)
    batch_size = int(rng.choice([8, 16, 32, 64]))
    return {
        "optimizer": "adamw",
        "lr": lr,
        "weight_decay": 0.01,
        "batch_size": batch_size,
        "epochs": int(rng.choice([2, 3, 5])),
        "max_steps": min(250, most_examples // batch_size),
        "schedule": "linear",
        "warmup_fraction": 0.1,
        "precision": "bf16",
    }


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of `low` and `high`."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def published(data: Path, run: int) -> Mapping[str, torch.Tensor]:
    """The ResNet-20 trained on the original images, for every run."""
    return cifar_resnet.base(data)


def own_initialisation(data: Path, run: int) -> Mapping[str, torch.Tensor]:
    """A ResNet-20 drawn from the number of the run."""
    with torch.random.fork_rng():
        torch.manual_seed(1_000 + run)
        return cifar_resnet.ResNet(20).state_dict()


def zero_shot(data: Path, run: int, *, name: str) -> Mapping[str, torch.Tensor]:
    """MiniLM with the head made of label sentences, for every run."""
    sentences = sst2_minilm.PROBLEMS[name].label_sentences
    return sst2_minilm.zero_shot(sst2_minilm.minilm_folder(), sentences).state_dict()


def _text(name: str, n_runs: int, most_examples: int) -> Experiment:
    return Experiment(
        name,
        n_runs,
        functools.partial(_text_task, name=name),
        functools.partial(zero_shot, name=name),
        functools.partial(draw_text, most_examples=most_examples),
    )


def _text_task(data: Path, *, name: str) -> stockpot.Task:
    return sst2_minilm.make_task(name, data)


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment("resnet", 12, cifar_resnet.make_task, published, draw_image),
        _text("sst2", 12, 4_800),
        _text("rte", 8, 2_400),
        _text("cola", 8, 4_800),
        Experiment(
            "scratch",
            3,
            cifar_resnet.make_task,
            own_initialisation,
            draw_scratch,
            shares_start=False,
        ),
    )
}


def config_of(experiment: Experiment, run: int) -> training.TrainConfig:
    """The hyper-parameters of run number `run`; they do not depend on how many runs there are."""
    rng = np.random.default_rng([SWEEP_SEED, run])
    return training.TrainConfig(**experiment.draw(rng))


def start_file(folder: Path, experiment: Experiment, run: int) -> Path:
    """Where the weights lie that run number `run` starts from."""
    return folder / ("base" if experiment.shares_start else f"start-{run:02}")


def make_run(experiment: Experiment, data: Path, folder: Path, run: int, threads: int = 1) -> Path:
    """Fine-tune one ingredient and write its record; keeps what is complete already."""
    torch.set_num_threads(threads)
    out = folder / "runs" / f"run-{run:02}.safetensors"
    record = out.with_suffix(".json")
    if out.exists() and record.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    base = start_file(folder, experiment, run).with_suffix(".safetensors")
    if not base.exists():
        save(base, experiment.start(data, run))
    task = experiment.make_task(data)
    config = config_of(experiment, run)
    result = training.fine_tune(
        task, base, config, out=out, seed=SWEEP_SEED * 1_000 + run, device="cpu", force=True
    )
    write_json(record, record_of(experiment, task, base, result, run=run, threads=threads))
    return out


def save(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write weights that a run starts from; two workers may do so at once."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, part)
    part.replace(path)


def record_of(
    experiment: Experiment,
    task: stockpot.Task,
    base: Path,
    result: training.TrainResult,
    *,
    run: int,
    threads: int,
) -> dict[str, Any]:
    """What there is to know of a run: enough to make it again, and to sort it."""
    return {
        "experiment": experiment.name,
        "run": run,
        "path": Path(result.path).name,
        "seed": result.seed,
        "hyperparameters": result.config.as_dict(),
        "scores": dict(result.epochs[-1].scores),
        "metric": task.metric.name,
        "epochs": [
            {"epoch": e.epoch, "loss": e.loss, "lr": e.lr, "scores": dict(e.scores)}
            for e in result.epochs
        ],
        "averages": {kind: Path(path).name for kind, path in result.averages.items()},
        "n_steps": result.n_steps,
        "seconds": result.seconds,
        "threads": threads,
        "base": base.name,
        "base_fingerprint": stockpot.open(base).fingerprint,
        "splits": {name: split.fingerprint for name, split in task.splits.items()},
        "n_train": len(task.train_set),  # type: ignore[arg-type]
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        },
    }


def missing_runs(experiment: Experiment, folder: Path) -> list[int]:
    """Numbers of the runs that are not complete."""
    runs = folder / "runs"
    return [
        run
        for run in range(experiment.n_runs)
        if not all((runs / f"run-{run:02}{end}").exists() for end in (".json", ".safetensors"))
    ]


def collect(folder: Path) -> None:
    """Write `runs.jsonl`: the records of all complete runs, in order."""
    records = sorted((folder / "runs").glob("run-*.json"))
    lines = [json.dumps(json.loads(file.read_text()), sort_keys=True) for file in records]
    (folder / "runs.jsonl").write_text("".join(f"{line}\n" for line in lines))


def make(
    names: list[str], data: Path, out: Path, *, most: int | None = None, workers: int = 2
) -> int:
    """Make what is missing of the named experiments, at most `most` runs; how many were made."""
    jobs = [(EXPERIMENTS[n], run) for n in names for run in missing_runs(EXPERIMENTS[n], out / n)]
    jobs = jobs if most is None else jobs[:most]
    started = time.perf_counter()
    # Fresh processes: a fork would share torch's thread pool with this one.
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        waiting = {
            pool.submit(make_run, experiment, data, out / experiment.name, run): experiment
            for experiment, run in jobs
        }
        for future in concurrent.futures.as_completed(waiting):
            path = future.result()
            collect(out / waiting[future].name)
            print(f"{path} after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return len(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with cifar10/, text/, …")
    parser.add_argument("--out", required=True, type=Path, help="outside the repository")
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be repeated")
    parser.add_argument("--most", type=int, help="stop after this many runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    data = cifar_resnet.data_folder(options.data)
    names = options.only or list(EXPERIMENTS)
    made = make(names, data, options.out, most=options.most, workers=options.workers)
    left = sum(len(missing_runs(EXPERIMENTS[n], options.out / n)) for n in names)
    print(json.dumps({"made": made, "left": left}))


if __name__ == "__main__":
    main()
