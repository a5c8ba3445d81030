"""The ingredients of the example: a base that reads print, and a sweep that learns handwriting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.handwriting.network import initial_weights
from stockpot.tasks.handwriting.task import base_task, handwriting
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune
from stockpot.train.sweep.named import half_zero
from stockpot.train.sweep.options import SweepOptions
from stockpot.train.sweep.space import (
    Constant,
    Distribution,
    Integer,
    LogUniform,
    Mixture,
    Space,
    Uniform,
)
from stockpot.workers import raise_failures, run_jobs

_BASE = TrainConfig(
    lr=2e-3, weight_decay=0.01, epochs=6, batch_size=64, warmup_fraction=0.1, score_every=6
)


@dataclass(frozen=True)
class Lab:
    """The size of the example, and what its sweep is drawn from.

    Attributes:
        n_train: handwritten digits to fine-tune on.
        n_held_out: handwritten digits to choose on.
        n_test: handwritten digits to report on, plain and changed; None for all that are left.
        n_fonts: printed digits of the `fonts` shift.
        n_base: printed digits that the base is trained on.
        base_noise: largest standard deviation of the noise on those, of ink counted 0..16.
        base: how the base is trained.
        n_runs: fine-tuned ingredients.
        batch_size: of fine-tuning.
        lr_exponents: learning rates are 10^−U(a, b).
        epochs: drawn from the whole numbers a..b.
        regularised: whether label smoothing, mixup and movements are drawn as well; else there is
            no smoothing and no mixup, and all runs move their images alike, by a little.
    """

    n_train: int = 100
    n_held_out: int = 500
    n_test: int | None = None
    n_fonts: int = 1000
    n_base: int = 12_000
    base_noise: float = 5.0
    base: TrainConfig = field(
        default_factory=lambda: replace(_BASE, rotate_degrees=30.0, shift_pixels=1.0)
    )
    n_runs: int = 12
    batch_size: int = 32
    lr_exponents: tuple[float, float] = (2.0, 2.7)
    epochs: tuple[int, int] = (10, 26)
    regularised: bool = False

    def task(self, *, seed: int) -> ClassificationTask:
        """The handwriting task of this size."""
        return handwriting(
            seed=seed,
            n_train=self.n_train,
            n_held_out=self.n_held_out,
            n_test=self.n_test,
            n_fonts=self.n_fonts,
        )

    def space(self) -> Space:
        """Hyper-parameters of the sweep: rate, weight decay and epochs.

        With `regularised` also the others of the image law of Model soups, scaled to this size.
        RandAugment would destroy 8×8 digits: in its place, none with probability ⅓ else shifts by
        up to U(0, 1) cells and turns by up to U(0, 20) degrees. Learning rates lie two decades
        above those of the paper, whose models have a thousand times as many weights.

        Reference: Wortsman et al. 2022, arXiv 2203.05482, appendix J.2.
        """
        low, high = self.lr_exponents
        plain: dict[str, Distribution] = {
            "lr": LogUniform(10**-high, 10**-low),
            "weight_decay": LogUniform(10**-4.2, 10**-0.2),
            "epochs": Integer(*self.epochs),
            "batch_size": Constant(self.batch_size),
            "warmup_fraction": Constant(0.1),
            # Only the last score is of use: every epoch's would take longer than training.
            "score_every": Constant(self.epochs[1]),
        }
        if not self.regularised:
            alike = {"shift_pixels": Constant(0.5), "rotate_degrees": Constant(10.0)}
            return Space({**plain, **alike})
        still, moved = Constant(0.0), {"shift_pixels": Uniform(0, 1)}
        movement = Mixture(
            (
                (1, {"shift_pixels": still, "rotate_degrees": still}),
                (2, {**moved, "rotate_degrees": Uniform(0, 20)}),
            )
        )
        more = {"label_smoothing": half_zero(0.25), "mixup": half_zero(0.9), "movement": movement}
        return Space({**plain, **more})

    def task_maker(self, *, seed: int) -> Callable[[], ClassificationTask]:
        """What makes the task in each worker of a sweep."""
        return _MakeTask(self, seed)

    def sweep(self, *, seed: int) -> SweepOptions:
        """The sweep of this size, for `run_sweep` with the task of the same seed."""
        return SweepOptions(n_runs=self.n_runs, space=self.space(), seed=seed, device="cpu")

    def to_json(self) -> dict[str, JSON]:
        """Everything that the checkpoints and scores depend on besides the seed."""
        values: dict[str, JSON] = asdict(self)
        return {**values, "base": self.base.as_dict()}


FULL = Lab()
"""What `stockpot demo` runs: plain fine-tunes at similar rates, few labels, a well trained base.

It was set up on seeds 300 and above (docs/handwriting.md). Noise, turns and shifts are what its
base is good at and a fine-tuned network forgets, so that averaging has something to win.
"""

WIDE = replace(
    FULL,
    n_train=300,
    n_base=4000,
    base_noise=0.0,
    base=_BASE,
    lr_exponents=(1.7, 3.7),
    epochs=(4, 16),
    regularised=True,
)
"""What `stockpot demo --wide` runs: learning rates over two decades, where averaging hardly helps.

The largest rates lead out of the basin that the others share; greedy then keeps few runs.
"""

QUICK = replace(
    FULL,
    n_test=400,
    n_fonts=300,
    n_base=4000,
    n_runs=6,
    epochs=(10, 14),
)
"""What `stockpot demo --quick` runs: the same method with fewer and shorter runs."""


def make_base(
    out: StrPath, lab: Lab = FULL, *, seed: int = 0, progress: Progress = no_progress
) -> None:
    """Train a fresh network on printed digits and write it to `out`.

    A run that was killed is continued. Takes one thread, whose number the weights depend on.

    Raises:
        OutputExistsError: `out` exists.
    """

    def job(_: None) -> None:
        task = base_task(seed=seed, n_train=lab.n_base, noise=lab.base_noise)
        fine_tune(
            task, initial_weights(seed), lab.base, out=out, seed=seed, device="cpu",
            progress=lambda done, total, _: progress(done, total, "steps of the base"),
        )  # fmt: skip

    raise_failures(run_jobs(job, {"base": None}))


@dataclass(frozen=True, slots=True)
class _MakeTask:
    """A function that a worker can be sent."""

    lab: Lab
    seed: int

    def __call__(self) -> ClassificationTask:
        return self.lab.task(seed=self.seed)
