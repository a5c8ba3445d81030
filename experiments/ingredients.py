"""Make, or go on making, the ingredients that the reference experiments average.

    python -m experiments.ingredients --data ../shared/data --out ../ingredients
    python -m experiments.ingredients --data DATA --out OUT --seeds 0 1 2 --device cuda --jobs 15

writes, per sweep seed and experiment, `OUT/sweep-0/resnet/base.safetensors` and the folder of a
`stockpot sweep`, `OUT/sweep-0/resnet/runs`, with its journal in `cache` beside it. What is already
there is kept; a run that was killed goes on from its last epoch. On two cores a run takes one to
four minutes of one of them, and the experiments of one seed about 100 minutes; on one H100,
`--jobs` processes share the card. `--quick` tries everything in a few steps and means nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from experiments.common import POLICIES, side_by_side, values_of

import stockpot
from experiments import cifar_resnet, pacs, sst2_minilm
from stockpot import train as training
from stockpot.evaluate import part_of, split_fingerprint, split_to_choose_on, with_splits
from stockpot.train import SweepOptions, run_sweep
from stockpot.workers import WorkerOptions

QUICK_RUNS, QUICK_STEPS, QUICK_EXAMPLES = 2, 2, 40


@dataclass(frozen=True)
class Experiment:
    """How the ingredients of one experiment are made.

    `make_task(data, device=…)` makes the task; `start(data)` gives the weights that all runs start
    from. None is the control that must not average: each run draws its own.
    """

    name: str
    n_runs: int
    make_task: Callable[..., stockpot.Task]
    start: Callable[[Path], Mapping[str, torch.Tensor]] | None
    space: Mapping[str, Any]

    def task(self, data: Path, *, device: str = "cpu", quick: bool = False) -> stockpot.Task:
        """The task with its data on `device`; with `quick`, with a few examples in each split."""
        task = self.make_task(data, device=device)
        return first_examples(task, QUICK_EXAMPLES) if quick else task


def first_examples(task: stockpot.Task, n: int) -> stockpot.Task:
    """`task` with no more than the first `n` examples in a split, which are in random order."""
    parts = {
        name: part_of(
            split,
            range(min(n, len(split.dataset))),  # type: ignore[arg-type]
            fingerprint=split_fingerprint(split).value,
        )
        for name, split in task.splits.items()
    }
    return with_splits(task, parts)


def image_space() -> dict[str, Any]:
    """SGD or AdamW, learning rate, decay, label smoothing, two or three epochs.

    The law of the model-soups paper is for a ViT-B/32 on ImageNet; this one is for a ResNet-20 of
    which two cores have to train twelve. All runs move and mirror images alike (`MOVEMENTS`), so
    that BatchNorm statistics have one training transform. Two EMAs and the mean of the epochs' ends
    (SWA) are kept of every run.
    """
    sgd = {
        "optimizer": "sgd",
        "lr": {"log_uniform": [0.005, 0.05]},
        "weight_decay": {"log_uniform": [1e-4, 2e-3]},
    }
    adamw = {
        "optimizer": "adamw",
        "lr": {"log_uniform": [3e-4, 2e-3]},
        "weight_decay": {"log_uniform": [1e-4, 1e-1]},
    }
    smoothing = [{"weight": 1, "value": 0.0}, {"weight": 1, "uniform": [0, 0.2]}]
    return {
        "optimiser": {"mixture": [{"weight": 2, "set": sgd}, {"weight": 1, "set": adamw}]},
        "label_smoothing": {"mixture": smoothing},
        "epochs": {"choice": [2, 3]},
        "batch_size": 128,
        "warmup_fraction": 0.1,
        "precision": "bf16",
        "ema_decays": [0.99, 0.999],
        "swa_start_epoch": 0,
    }


def scratch_space() -> dict[str, Any]:
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


def pretrained_image_space() -> dict[str, Any]:
    """AdamW at moderate rates, two or three epochs, decay and label smoothing: one basin."""
    smoothing = [{"weight": 1, "value": 0.0}, {"weight": 1, "uniform": [0, 0.2]}]
    return {
        "optimizer": "adamw",
        "lr": {"log_uniform": [1e-4, 6e-4]},
        "weight_decay": {"log_uniform": [1e-4, 1e-1]},
        "label_smoothing": {"mixture": smoothing},
        "epochs": {"choice": [2, 3]},
        "batch_size": 32,
        "warmup_fraction": 0.1,
    }


def text_space(most_examples: int) -> dict[str, Any]:
    """Learning rates 1e-6 to 1e-3, batches of 8 to 64, 2 to 5 epochs, as on GLUE; then cut.

    A run ends after 250 steps or `most_examples`, schedule included: two cores have to do.
    """
    batches = [
        {"weight": 1, "set": {"batch_size": n, "max_steps": min(250, most_examples // n)}}
        for n in (8, 16, 32, 64)
    ]
    return {
        "lr": {"log_uniform": [1e-6, 1e-3]},
        "batches": {"mixture": batches},
        "epochs": {"choice": [2, 3, 5]},
        "weight_decay": 0.01,
        "schedule": "linear",
        "warmup_fraction": 0.1,
        "precision": "bf16",
    }


def moderate_text_space() -> dict[str, Any]:
    """AdamW at moderate rates, two or three whole epochs, decay and label smoothing: one basin."""
    return {
        **pretrained_image_space(),
        "lr": {"log_uniform": [3e-5, 3e-4]},
        "schedule": "linear",
        "precision": "bf16",
    }


def image_scratch_space() -> dict[str, Any]:
    """One setting for all, and more epochs than the fine-tunes have: only seeds differ."""
    return {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "epochs": 5,
        "batch_size": 32,
        "warmup_fraction": 0.1,
    }


def zero_shot(data: Path, *, name: str) -> Mapping[str, torch.Tensor]:
    """MiniLM with the head made of label sentences, for every run."""
    sentences = sst2_minilm.PROBLEMS[name].label_sentences
    return sst2_minilm.zero_shot(sst2_minilm.minilm_folder(), sentences).state_dict()


def _text(
    name: str,
    problem: str,
    n_runs: int,
    space: Mapping[str, Any],
    *,
    n_train: int = sst2_minilm.N_TRAIN,
) -> Experiment:
    return Experiment(
        name,
        n_runs,
        functools.partial(_text_task, problem=problem, n_train=n_train),
        functools.partial(zero_shot, name=problem),
        space,
    )


def _text_task(data: Path, *, problem: str, n_train: int, device: str = "cpu") -> stockpot.Task:
    return sst2_minilm.make_task(problem, data, n_train=n_train, device=device)


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment("resnet", 12, cifar_resnet.make_task, cifar_resnet.base, image_space()),
        Experiment("pacs", 6, pacs.make_task, pacs.base, pretrained_image_space()),
        _text("sst2", "sst2", 12, text_space(4_800)),
        _text("cola", "cola", 8, text_space(4_800)),
        _text("rte", "rte", 8, text_space(2_400)),
        _text("sst2-moderate", "sst2", 6, moderate_text_space()),
        _text("cola-moderate", "cola", 6, moderate_text_space(), n_train=8_000),
        _text("mrpc-moderate", "mrpc", 6, moderate_text_space()),
        _text("rte-moderate", "rte", 6, moderate_text_space()),
        Experiment("scratch", 3, cifar_resnet.make_task, None, scratch_space()),
        Experiment(
            "pacs-three",
            6,
            functools.partial(pacs.make_task, sources=pacs.DOMAINS[:3]),
            pacs.base,
            pretrained_image_space(),
        ),
        Experiment("pacs-scratch", 3, pacs.make_task, None, image_scratch_space()),
    )
}


def quickly(experiment: Experiment) -> Experiment:
    """The experiment in two runs of two steps."""
    space = {**experiment.space, "steps": {"value": {"epochs": 1, "max_steps": QUICK_STEPS}}}
    return dataclasses.replace(experiment, n_runs=QUICK_RUNS, space=space)


@dataclass(frozen=True)
class Sweep:
    """One sweep to make: which, with which seed, from which data, where."""

    experiment: Experiment
    seed: int
    data: Path
    folder: Path
    device: str = "cpu"
    quick: bool = False
    n_scored: int | None = None
    batchnorm: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    def task(self) -> stockpot.Task:
        """The task that its runs are of, with at most `n_scored` examples in a split."""
        task = self.experiment.task(self.data, device=self.device, quick=self.quick)
        return task if self.n_scored is None else first_examples(task, self.n_scored)

    def evaluator(self) -> stockpot.TaskEvaluator:
        """Scores its models, under its policy; the journal serves all policies."""
        return stockpot.TaskEvaluator(
            self.task(), cache=self.cache, device=self.device, batchnorm=self.batchnorm,
            precision=self.precision,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """The experiment, and the policy where one was asked for."""
        name = self.experiment.name
        return name if self.batchnorm is None else f"{name}, {self.batchnorm}"

    @property
    def base(self) -> Path:
        """The weights that its runs start from; the control has none."""
        return self.folder / "base.safetensors"

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.folder / "runs"

    @property
    def cache(self) -> Path:
        """The folder of the journal that holds their outputs."""
        return self.folder / "cache"


def sweeps(
    names: Sequence[str],
    seeds: Sequence[int],
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    quick: bool = False,
) -> dict[str, Sweep]:
    """Sweeps by name (`"sweep-0/resnet"`), the longest experiments first."""
    made = {name: quickly(e) if quick else e for name, e in EXPERIMENTS.items()}
    return {
        f"sweep-{seed}/{name}": Sweep(
            made[name], seed, data, out / f"sweep-{seed}" / name, device, quick
        )
        for name in made
        if name in names
        for seed in seeds
    }


def first_runs(sweep: Sweep, n: int) -> Sweep:
    """No more than the first `n` runs of a sweep; calling again for all of them goes on there."""
    experiment = sweep.experiment
    part = dataclasses.replace(experiment, n_runs=min(n, experiment.n_runs))
    return dataclasses.replace(sweep, experiment=part)


def trained_in(sweep: Sweep, precision: str) -> Sweep:
    """A sweep whose runs are trained in this precision."""
    space = {**sweep.experiment.space, "precision": precision}
    return dataclasses.replace(sweep, experiment=dataclasses.replace(sweep.experiment, space=space))


def chosen_on_alone(sweep: Sweep) -> stockpot.Task:
    """The task of a sweep with nothing to score but what chooses."""
    task = sweep.task()
    name = split_to_choose_on(task)
    return with_splits(task, {name: task.splits[name]})


def make_sweep(sweep: Sweep, *, n_workers: int = 1, held_out_only: bool = False) -> int:
    """Make what is missing of a sweep; the number of its runs that are done.

    With `held_out_only` they are scored on no more than that: what reports can wait.

    Raises:
        RuntimeError: runs failed; shows the first reason.
    """
    experiment = sweep.experiment
    base, train = None, None
    if experiment.start is None:
        train = functools.partial(train_from_scratch, sweep=sweep)
    else:
        base = sweep.base
        if not base.exists():
            save(base, experiment.start(sweep.data))
    result = run_sweep(
        functools.partial(chosen_on_alone, sweep) if held_out_only else sweep.task,
        base,
        SweepOptions(
            n_runs=experiment.n_runs,
            space=experiment.space,
            seed=sweep.seed,
            train=train,
            device=sweep.device,
            retry_failed=True,
        ),
        out=sweep.runs,
        workers=WorkerOptions(n_workers=n_workers),
        cache=sweep.cache,
    )
    failed = [run for run in result.runs if run.error is not None]
    if failed:
        reason = (failed[0].error or {})["traceback"]
        raise RuntimeError(f"{len(failed)} runs of {sweep.runs} failed; the first:\n{reason}")
    return len(result.paths)


def train_from_scratch(values: Mapping[str, Any], *, sweep: Sweep) -> None:
    """Train the network of a task from the initialisation that the seed of the run draws."""
    place = {"base", "index", "seed", "out"}
    config = training.TrainConfig.from_mapping(
        {name: value for name, value in values.items() if name not in place}
    )
    task = sweep.task()
    training.fine_tune(
        task,
        own_initialisation(task, values["seed"]),
        config,
        out=values["out"],
        seed=values["seed"],
        device=sweep.device,
        force=True,
    )


def own_initialisation(task: stockpot.Task, seed: int) -> Mapping[str, torch.Tensor]:
    """The network of `task` drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return task.build().state_dict()


def save(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights that runs start from, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, part)
    part.replace(path)


def make(
    wanted: Mapping[str, Sweep], *, n_jobs: int, held_out_only: bool = False
) -> dict[str, int]:
    """Make sweeps side by side in `n_jobs` processes: name → runs that are done.

    Raises:
        WorkerError: names the sweeps of which runs failed.
    """
    each = max(1, n_jobs // max(1, len(wanted)))
    work = functools.partial(make_sweep, n_workers=each, held_out_only=held_out_only)
    results = side_by_side(work, wanted, n_jobs=n_jobs)
    values_of(results)
    return {result.name: result.value or 0 for result in results}


def add_arguments(parser: argparse.ArgumentParser, *, needs_data: bool = True) -> None:
    """The arguments that all experiments on these ingredients share."""
    parser.add_argument("--data", required=needs_data, help="folder with cifar10/, text/, …")
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweeps")
    parser.add_argument("--device", default="cpu", help="where data and models are: cpu, cuda")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of experiments that score sweeps; `asked_for` reads them."""
    parser.add_argument("--ingredients", type=Path, help="what experiments.ingredients wrote")
    parser.add_argument("--batchnorm", choices=POLICIES, help="the policy of all models")
    parser.add_argument("--examples", type=int, help="score no more of each split")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of scores")


def asked_for(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Sweep]:
    """The sweeps of these experiments and `--seeds` in the folder that `--ingredients` names.

    Those without runs are left out, and named.
    """
    wanted = sweeps(
        names,
        options.seeds,
        cifar_resnet.data_folder(options.data),
        (options.ingredients or Path()).resolve(),
        device=options.device,
        quick=options.quick,
    )
    asked = {
        "n_scored": options.examples,
        "batchnorm": options.batchnorm,
        "precision": options.precision,
    }
    there = {
        name: dataclasses.replace(sweep, **asked)
        for name, sweep in wanted.items()
        if list(sweep.runs.glob("run-*.json"))
    }
    for name in wanted.keys() - there.keys():
        print(f"{name}: no runs in {wanted[name].runs}", file=sys.stderr)
    return there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path, help="outside the repository")
    add_arguments(parser)
    parser.add_argument("--runs", type=int, help="only the first so many of each sweep")
    parser.add_argument(
        "--train-precision",
        choices=("fp32", "bf16"),
        default="bf16",
        help="fp32 is ten times as fast on processors without instructions for bfloat16",
    )
    parser.add_argument(
        "--held-out-only", action="store_true", help="score the runs on no other split, for now"
    )
    options = parser.parse_args()
    wanted = sweeps(
        options.only or list(EXPERIMENTS),
        options.seeds,
        cifar_resnet.data_folder(options.data),
        options.out.resolve(),
        device=options.device,
        quick=options.quick,
    )
    wanted = {name: trained_in(sweep, options.train_precision) for name, sweep in wanted.items()}
    if options.runs is not None:
        wanted = {name: first_runs(sweep, options.runs) for name, sweep in wanted.items()}
    started = time.perf_counter()
    made = make(wanted, n_jobs=options.jobs, held_out_only=options.held_out_only)
    print(json.dumps({"runs": made, "seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
