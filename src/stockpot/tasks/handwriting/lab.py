"""The ingredients of the example: a base that reads print, and a sweep that learns handwriting."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.opening import open as open_checkpoint
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.handwriting.network import initial_weights
from stockpot.tasks.handwriting.task import base_task, handwriting
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune
from stockpot.workers import WorkerOptions, raise_failures, run_jobs


@dataclass(frozen=True)
class Lab:
    """The size of the example, and what its sweep is drawn from.

    Attributes:
        n_train: handwritten digits to fine-tune on.
        n_held_out: handwritten digits to choose on.
        n_test: handwritten digits to report on, plain and changed; None for all that are left.
        n_fonts: printed digits of the `fonts` shift.
        n_base: printed digits that the base is trained on.
        base: how the base is trained.
        n_runs: fine-tuned ingredients.
        batch_size: of fine-tuning.
        lr_exponents: learning rates are 10^−U(a, b).
        epochs: drawn from the whole numbers a..b.
    """

    n_train: int = 300
    n_held_out: int = 500
    n_test: int | None = None
    n_fonts: int = 1000
    n_base: int = 4000
    base: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            lr=2e-3, weight_decay=0.01, epochs=6, batch_size=64, warmup_fraction=0.1, score_every=6
        )
    )
    n_runs: int = 12
    batch_size: int = 32
    lr_exponents: tuple[float, float] = (1.7, 3.7)
    epochs: tuple[int, int] = (4, 16)

    def task(self, *, seed: int) -> ClassificationTask:
        """The handwriting task of this size."""
        return handwriting(
            seed=seed,
            n_train=self.n_train,
            n_held_out=self.n_held_out,
            n_test=self.n_test,
            n_fonts=self.n_fonts,
        )

    def to_json(self) -> dict[str, JSON]:
        """Everything that the checkpoints and scores depend on besides the seed."""
        values: dict[str, JSON] = asdict(self)
        return {**values, "base": self.base.as_dict()}


FULL = Lab()
"""What `stockpot demo` runs: about a minute on two cores."""

QUICK = replace(
    FULL,
    n_test=400,
    n_fonts=300,
    n_base=2000,
    n_runs=6,
    epochs=(4, 8),
)
"""What `stockpot demo --quick` runs: the same method with fewer and shorter runs."""


def draw_runs(lab: Lab, *, seed: int) -> tuple[TrainConfig, ...]:
    """Hyper-parameters of the sweep: the image law of Model soups, scaled to this size.

    Learning rate 10^−U(a, b), weight decay 10^−U(0.2, 4.2), label smoothing 0 with probability ½
    else U(0, 0.25), mixup 0 with probability ½ else U(0, 0.9), epochs uniform in a range.
    RandAugment would destroy 8×8 digits: in its place, none with probability ⅓ else shifts by up to
    U(0, 1) cells and turns by up to U(0, 20) degrees. Learning rates lie two decades above those of
    the paper, whose models have a thousand times as many weights.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, appendix J.2.1.
    """
    rng = np.random.default_rng(seed)

    def draw() -> TrainConfig:
        augmented = rng.random() < 2 / 3
        return TrainConfig(
            lr=10 ** -rng.uniform(*lab.lr_exponents),
            weight_decay=10 ** -rng.uniform(0.2, 4.2),
            label_smoothing=rng.uniform(0, 0.25) if rng.random() < 0.5 else 0.0,
            mixup=rng.uniform(0, 0.9) if rng.random() < 0.5 else 0.0,
            epochs=int(rng.integers(lab.epochs[0], lab.epochs[1] + 1)),
            shift_pixels=rng.uniform(0, 1) if augmented else 0.0,
            rotate_degrees=rng.uniform(0, 20) if augmented else 0.0,
            batch_size=lab.batch_size,
            warmup_fraction=0.1,
            # Only the last score is of use here: every epoch's would take longer than training.
            score_every=lab.epochs[1],
        )

    return tuple(draw() for _ in range(lab.n_runs))


def make_base(
    out: StrPath, lab: Lab = FULL, *, seed: int = 0, progress: Progress = no_progress
) -> None:
    """Train a fresh network on printed digits and write it to `out`.

    A run that was killed is continued. Takes one thread, whose number the weights depend on.

    Raises:
        OutputExistsError: `out` exists.
    """

    def job(_: None) -> None:
        task = base_task(seed=seed, n_train=lab.n_base)
        fine_tune(
            task, initial_weights(seed), lab.base, out=out, seed=seed, device="cpu",
            progress=lambda done, total, _: progress(done, total, "steps of the base"),
        )  # fmt: skip

    raise_failures(run_jobs(job, {"base": None}))


def make_runs(
    folder: StrPath,
    base: StrPath,
    lab: Lab = FULL,
    *,
    seed: int = 0,
    journal: StrPath | None = None,
    n_workers: int | None = None,
    progress: Progress = no_progress,
) -> Mapping[str, str]:
    """Fine-tune the sweep from `base` into `folder`: name → path, the same for any `n_workers`.

    Runs that are there already are left as they are; one that was killed is continued. With
    `journal`, each worker also scores its runs on all splits, for a later evaluator to find there.

    Raises:
        WorkerError: runs failed; all are named.
    """
    configs = dict(zip(run_names(lab), draw_runs(lab, seed=seed), strict=True))
    paths = {name: Path(folder) / f"{name}.safetensors" for name in configs}
    jobs = {
        name: _Run(str(base), str(paths[name]), config, seed * 1000 + i)
        for i, (name, config) in enumerate(configs.items())
        if not paths[name].exists()
    }
    n_done = len(paths) - len(jobs)
    progress(n_done, len(paths), "fine-tuning runs")

    def on_result(_: object) -> None:
        nonlocal n_done
        n_done += 1
        progress(n_done, len(paths), "fine-tuning runs")

    raise_failures(
        run_jobs(
            _fine_tune,
            jobs,
            setup=functools.partial(_make_evaluator, lab, seed, journal),
            workers=WorkerOptions(n_workers=n_workers),
            on_result=on_result,
        )
    )
    return {name: str(path) for name, path in paths.items()}


def run_names(lab: Lab) -> tuple[str, ...]:
    """`run-00`, `run-01`, …"""
    return tuple(f"run-{i:02d}" for i in range(lab.n_runs))


@dataclass(frozen=True, slots=True)
class _Run:
    """What a worker is told of one run."""

    base: str
    out: str
    config: TrainConfig
    seed: int


def _make_evaluator(lab: Lab, seed: int, journal: StrPath | None) -> Evaluator:
    return TaskEvaluator(lab.task(seed=seed), cache=journal, device="cpu", seed=seed)


def _fine_tune(evaluator: Evaluator, run: _Run) -> None:
    fine_tune(evaluator.task, run.base, run.config, out=run.out, seed=run.seed, device="cpu")
    # What no file remembers would be scored for nothing.
    if evaluator.journal.path is not None:
        evaluator.scores(open_checkpoint(run.out))
