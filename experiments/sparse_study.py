"""What the experiment on sparse soups prunes, how far, with how much retraining, and where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.common import POLICIES
from experiments.ingredients import first_examples

import stockpot
from experiments import cifar_resnet
from stockpot import TaskEvaluator, TrainConfig, fine_tune
from stockpot.tasks.handwriting import FULL, QUICK, make_base
from stockpot.train import phase_sparsities


@dataclass(frozen=True)
class Study:
    """What is pruned, how far, and with how much retraining.

    Attributes:
        name: of the study.
        sparsities: targets, each with soups of its own.
        every_phase: whether the phases on the way are reported, too.
        train: of the dense model, and what retraining follows.
        n_phases: prune-retrain-average cycles.
        n_candidates: retrained side by side in each.
        epochs: of each retraining.
        during_epochs: the budget of GMP, DPF and BIMP from the base; 0 leaves them out.
        policies: of BatchNorm, each with tables of its own; any one where there is no BatchNorm.
        greedy_chain: whether greedy soups go on from greedy ones, phase by phase; else they are
            chosen, under each policy, of the candidates of the uniform chain.
    """

    name: str
    sparsities: tuple[float, ...]
    every_phase: bool
    train: TrainConfig
    n_phases: int = 3
    n_candidates: int = 3
    epochs: int = 5
    during_epochs: int = 0
    schedule: str = "allr"
    policies: tuple[str, ...] = ("averaged",)
    greedy_chain: bool = True

    def points(self, sparsity: float) -> list[tuple[int, float]]:
        """Phases (from 1) that are reported of the soup of `sparsity`, each with its own."""
        rates = list(enumerate(phase_sparsities(sparsity, self.n_phases), 1))
        return rates if self.every_phase else rates[-1:]


HANDWRITING = Study(
    "handwriting",
    (0.5, 0.8, 0.9, 0.95, 0.98),
    every_phase=False,
    train=TrainConfig(
        lr=3e-3, epochs=16, batch_size=32, weight_decay=0.01, warmup_fraction=0.1,
        shift_pixels=0.5, rotate_degrees=10, score_every=16,
    ),
    during_epochs=24,
)  # fmt: skip
RESNET = Study(
    "resnet",
    (0.98,),
    every_phase=True,
    train=TrainConfig(
        optimizer="sgd", lr=0.05, epochs=3, batch_size=128, weight_decay=5e-4, warmup_fraction=0.1,
        shift_pixels=2.0, score_every=3, precision="bf16",
    ),
    epochs=3,
    schedule="llr",
    policies=POLICIES,
    greedy_chain=False,
)  # fmt: skip
STUDIES = {study.name: study for study in (HANDWRITING, RESNET)}


def quickly(study: Study) -> Study:
    """The study in a few steps."""
    train = replace(study.train, epochs=2, score_every=2, batch_size=20)
    return replace(
        study, sparsities=study.sparsities[-1:], train=train, epochs=1, n_phases=2,
        during_epochs=4 if study.during_epochs else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """Where a study takes place."""

    study: Study
    out: Path
    data: Path | None = None
    device: str = "cpu"
    quick: bool = False
    n_train: int = cifar_resnet.N_TRAIN
    n_scored: int | None = None

    @property
    def folder(self) -> Path:
        return self.out / self.study.name

    def place(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def task(self, seed: int, *, augment: cifar_resnet.Augment | None = None) -> stockpot.Task:
        """What is trained and scored on; the study's configuration moves the images."""
        if self.study.name == "handwriting":
            return (QUICK if self.quick else FULL).task(seed=seed)
        n_train = 40 if self.quick else self.n_train
        n_held_out = 40 if self.quick else cifar_resnet.N_HELD_OUT
        task = cifar_resnet.make_task(
            self.data, depth=8 if self.quick else 20, n_train=n_train, n_held_out=n_held_out,
            device=self.device, augment=augment,
        )  # fmt: skip
        return task if self.n_scored is None else first_examples(task, self.n_scored)

    def judge(self, seed: int) -> TaskEvaluator:
        """Scores with the models' own statistics, in the precision of the training.

        Statistics that are `recalibrated` are of moved images.
        """
        pixels = round(self.study.train.shift_pixels)
        moved = cifar_resnet.Movements(pixels=pixels, flip=False)
        return TaskEvaluator(
            self.task(seed, augment=moved), device=self.device, batchnorm="averaged",
            precision=self.study.train.precision,  # type: ignore[arg-type]
        )  # fmt: skip

    def make_dense(self, seed: int) -> None:
        """The base and the dense model of a seed, unless they are there."""
        place = self.place(seed)
        place.mkdir(parents=True, exist_ok=True)
        base, dense = place / "base.safetensors", place / "dense.safetensors"
        if not base.exists():
            self._make_base(base, seed)
        if not dense.exists():
            fine_tune(
                self.task(seed), base, self.study.train, out=dense, seed=seed, device=self.device
            )

    def _make_base(self, base: Path, seed: int) -> None:
        if self.study.name == "handwriting":
            make_base(base, QUICK if self.quick else FULL, seed=seed)
            return
        from safetensors.torch import save_file

        weights = (
            cifar_resnet.ResNet(8).state_dict() if self.quick else cifar_resnet.base(self.data)
        )
        save_file({name: value.contiguous() for name, value in weights.items()}, base)
