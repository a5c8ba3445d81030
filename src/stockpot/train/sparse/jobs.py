"""The jobs of a sparse soup, which workers run: prune, retrain, and chains of both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stockpot._records import read_json
from stockpot._types import JSON, Progress
from stockpot.analysis.geometry import angle, measure_geometry
from stockpot.errors import (
    MaskMismatchError,
    Problem,
    RecipeError,
    StockpotError,
    TrainingError,
)
from stockpot.evaluate.evaluator import Evaluator
from stockpot.formats.base import Checkpoint
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing import Mixture
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.mask import Mask, as_array
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune
from stockpot.train.pruning import Pruning
from stockpot.train.schedule import retrain_config, retrain_lengths
from stockpot.train.sparse.selectors import Selector
from stockpot.workers import JobResult, WorkerOptions, raise_failures, run_jobs


@dataclass(frozen=True)
class PruneResult:
    """A mask, and what pruning to it took from the model.

    Attributes:
        mask: what is kept.
        change: ‖W − Wᵖ‖/‖W‖ over the prunable weights.
        rate: share of the weights that were left before this pruning which it took.
    """

    mask: Mask
    change: float
    rate: float


def prune(
    start: Checkpoint,
    names: Sequence[str],
    selector: Selector,
    sparsity: float,
    previous: Mask | None,
) -> PruneResult:
    """Select what is kept of `start`; reads its prunable tensors, writes nothing.

    Raises:
        RecipeError: prunable tensors are missing, or this sparsity cannot be made.
    """
    missing = [name for name in names if name not in start]
    if missing:
        raise RecipeError(
            f"{start.path} holds no {', '.join(missing[:5])}, which the task's model has: it is no "
            "checkpoint of this task"
        )
    values = {name: as_array(start.read(name)) for name in names}
    mask = selector.select(values, sparsity, previous)
    whole = sum(float(np.square(array, dtype=np.float64).sum()) for array in values.values())
    taken = sum(
        float(np.square(values[name][~mask.kept(name)], dtype=np.float64).sum()) for name in mask
    )
    before = sum(array.size for array in values.values())
    before -= 0 if previous is None else previous.n_zeros
    pruned = mask.n_zeros - (0 if previous is None else previous.n_zeros)
    rate = pruned / before if before else 0.0
    return PruneResult(mask, math.sqrt(taken / whole) if whole else 0.0, rate)


@dataclass(frozen=True)
class Plan:
    """What decides phases besides the weights that they start from.

    Attributes:
        names: of the prunable tensors.
        selector: what goes.
        sparsities: after each phase.
        schedule: of retraining; see `retrain_config`.
        original: of the run that made the dense model.
        epochs: of each retraining.
    """

    names: tuple[str, ...]
    selector: Selector
    sparsities: tuple[float, ...]
    schedule: str
    original: TrainConfig
    epochs: int

    def prune(self, start: Checkpoint, phase: int, previous: Mask | None) -> PruneResult:
        """What phase `phase` (from 0) prunes `start` to."""
        return prune(start, self.names, self.selector, self.sparsities[phase], previous)

    def config(self, pruned: PruneResult) -> TrainConfig:
        """How what was pruned is retrained."""
        return retrain_config(
            self.schedule, self.original, epochs=self.epochs, change=pruned.change, rate=pruned.rate
        )


@dataclass(frozen=True)
class Retraining:
    """One job: train from `start` with `pruning` and write `out`."""

    start: str
    out: str
    pruning: Pruning | None
    config: TrainConfig
    seed: int
    device: str | None

    @property
    def done(self) -> bool:
        """Whether its result is there: it appears whole or not at all."""
        return Path(self.out).exists()

    @property
    def epochs(self) -> int:
        """Training epochs of this job."""
        return self.config.epochs

    def run(self, evaluator: Evaluator) -> None:
        """Train, unless it is done."""
        if not self.done:
            fine_tune(
                evaluator.task, self.start, self.config, out=self.out, seed=self.seed,
                pruning=self.pruning, device=self.device, score=lambda _: {},
            )  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """One job: iterative pruning (IMP) of one model, phase after phase, into `folder`."""

    start: str
    folder: str
    plan: Plan
    seeds: tuple[int, ...]
    device: str | None
    suffix: str = ".safetensors"

    @property
    def out(self) -> str:
        """The last phase's result."""
        return self._path(len(self.plan.sparsities) - 1)

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return Path(self.out).exists()

    @property
    def epochs(self) -> int:
        """Training epochs of this job."""
        return self.plan.epochs * len(self.plan.sparsities)

    def _path(self, phase: int) -> str:
        return str(Path(self.folder) / f"phase-{phase + 1}{self.suffix}")

    def run(self, evaluator: Evaluator) -> None:
        """Go through the phases, from where an earlier attempt came to."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        start, mask = self.start, None
        for phase, seed in enumerate(self.seeds):
            pruned = self.plan.prune(open_checkpoint(start), phase, mask)
            config, out = self.plan.config(pruned), self._path(phase)
            Retraining(start, out, pruned.mask, config, seed, self.device).run(evaluator)
            start, mask = out, pruned.mask


@dataclass(frozen=True)
class Jobs:
    """Runs retrainings side by side; workers score what they make into the caller's journal."""

    workers: WorkerOptions
    make_evaluator: Callable[[], Evaluator]
    device: str | None = None

    def run(self, jobs: Mapping[str, Retraining | Chain], progress: Progress, what: str) -> None:
        """Run what is not done yet, the longest first; its results are files.

        Raises:
            WorkerError: jobs failed; all are named.
        """
        left = {name: job for name, job in jobs.items() if not job.done}
        n_done = len(jobs) - len(left)
        progress(n_done, len(jobs), what)

        def on_result(_: JobResult[None]) -> None:
            nonlocal n_done
            n_done += 1
            progress(n_done, len(jobs), what)

        longest_first = dict(sorted(left.items(), key=lambda item: -item[1].epochs))
        raise_failures(
            run_jobs(
                _run_job,
                longest_first,
                setup=self.make_evaluator,
                workers=self.workers,
                on_result=on_result,
            )
        )


def _run_job(evaluator: Evaluator, job: Retraining | Chain) -> None:
    job.run(evaluator)
    # Scored here, side by side with the others; what no file remembers would be for nothing.
    if evaluator.journal.path is not None:
        evaluator.scores(open_checkpoint(job.out))


def variations(
    vary: str, config: TrainConfig, m: int, *, seeds: Sequence[int]
) -> list[tuple[TrainConfig, int]]:
    """Configuration and seed of each of `m` candidates, which differ in exactly one thing.

    `seed`: data order, augmentation and dropout. `weight-decay`, `lr`: the configuration's times
    2^−1 … 2^1, evenly in the exponent. `retrain-length`: see `retrain_lengths`.

    >>> config = TrainConfig(lr=0.1, epochs=4)
    >>> [c.lr for c, _ in variations("lr", config, 3, seeds=[7, 8, 9])]
    [0.05, 0.1, 0.2]
    >>> [(c.epochs, s) for c, s in variations("retrain-length", config, 3, seeds=[7, 8, 9])]
    [(2, 7), (4, 7), (6, 7)]

    Raises:
        RecipeError: nothing would differ.
    """
    if vary == "seed":
        return [(config, seed) for seed in seeds[:m]]
    steps = [0.0] if m == 1 else [2 * i / (m - 1) - 1 for i in range(m)]
    if vary == "weight-decay":
        if config.weight_decay == 0:
            raise RecipeError(
                "vary is weight-decay, and the weight decay is 0, whose multiples are all the "
                "same: give one (weight_decay=…, --weight-decay), or vary the seed"
            )
        varied = [replace(config, weight_decay=config.weight_decay * 2**s) for s in steps]
    elif vary == "lr":
        varied = [replace(config, lr=config.lr * 2**s) for s in steps]
    elif vary == "retrain-length":
        varied = [_longer(config, epochs) for epochs in retrain_lengths(config.epochs, m)]
    else:
        raise RecipeError(
            f"vary is {vary!r}, expected one of seed, weight-decay, retrain-length, lr"
        )
    return [(one, seeds[0]) for one in varied]


def _longer(config: TrainConfig, epochs: int) -> TrainConfig:
    return replace(config, epochs=epochs, score_every=epochs)


def original_config(
    start: Checkpoint, given: Mapping[str, Any], *, n_examples: int, batch_size: int
) -> tuple[TrainConfig, set[str], list[str]]:
    """The configuration of the run that made `start`, as far as it is known.

    It is read from the record that a sweep left beside the checkpoint; what is given wins.

    Args:
        start: the dense model.
        given: fields of `TrainConfig`; None for what is not given.
        n_examples: of the training set.
        batch_size: the task's.

    Returns:
        The configuration, the names of the fields that are known, and notes on those that matter
        and are not.
    """
    recorded = _hyperparameters(start.path)
    fields_of = {field.name for field in fields(TrainConfig)}
    values = {name: value for name, value in recorded.items() if name in fields_of}
    values.update({name: value for name, value in given.items() if value is not None})
    known, notes = set(values), []
    if "lr" not in known:
        values["lr"] = TrainConfig.lr
        notes.append(
            f"no record beside {start.path} names its learning rate: retraining "
            f"takes {TrainConfig.lr:g}; set another with lr_max=… (--lr-max)"
        )
    if "batch_size" not in known:
        values["batch_size"] = _enough_steps(n_examples, batch_size)
        notes.append(
            f"retraining takes batches of {values['batch_size']}; say others with batch_size=… "
            "(--train-batch-size)"
        )
    return TrainConfig.from_mapping(values), known, notes


def _enough_steps(n_examples: int, batch_size: int) -> int:
    """`batch_size`, halved until an epoch has at least eight steps: scoring takes larger ones."""
    while batch_size > 8 and n_examples // batch_size < 8:
        batch_size //= 2
    return batch_size


def require_original(start: Checkpoint, known: set[str], *, why: str) -> None:
    """Refuse to go on without what `why` needs to know of the run that made `start`.

    Raises:
        RecipeError: says what to give.
    """
    options = {"lr": "lr_max=… (--lr-max)", "epochs": "original_epochs=… (--original-epochs)"}
    missing = [text for name, text in options.items() if name not in known]
    if missing:
        raise RecipeError(
            f"{why} follows the run that made {start.path}, and no record beside it describes that "
            f"run: give {' and '.join(missing)}, or use schedule llr"
        )


def _hyperparameters(path: str) -> Mapping[str, Any]:
    file = Path(path)
    stem = file.name if file.is_dir() else file.stem
    try:
        record = read_json(file.parent / f"{stem}.json")
    except (OSError, StockpotError):
        return {}
    found = record.get("hyperparameters") if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def as_file(start: Checkpoint, model: nn.Module, folder: Path) -> str:
    """Where workers can read `start`: its own path, or a copy in `folder`.

    A copy is made of what lies in memory, and of a file that holds apart what is one parameter of
    `model`: it is trained and counted as one, so it is saved as one, in a format that can say so.
    """
    ties = _ties(start, model)
    if start.files and not start.section and not ties:
        return str(Path(start.path).absolute())
    if ties:
        values = {name: start.read(name) for name in start}
        values |= {name: values[group[0]] for group in ties for name in group}
        start = from_state_dict(values, path=start.path)
    path = folder / f"start{suffix_of(start)}"
    if not path.exists():
        Mixture(Ingredients([start])).save(path)
    elif open_checkpoint(path).fingerprint != start.fingerprint:
        raise RecipeError(f"{path} is another model than the one given: choose another folder")
    return str(path)


def suffix_of(start: Checkpoint) -> str:
    """Of the files that are made from `start`: safetensors cannot say that two names are tied."""
    return ".pt" if start.tied else ".safetensors"


def _ties(start: Checkpoint, model: nn.Module) -> list[tuple[str, ...]]:
    """Names of one parameter of `model` each, which `start` holds apart with equal values."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {frozenset(group) for group in start.tied}
    return [
        tuple(group)
        for group in names.values()
        if len(group) > 1
        and all(name in start for name in group)
        and not any(tied_group >= set(group) for tied_group in tied)
        and all(
            np.array_equal(as_array(start.read(group[0])), as_array(start.read(name)))
            for name in group[1:]
        )
    ]


def require_mask(mask: Mask, models: Sequence[Checkpoint]) -> None:
    """Refuse models that are not zero where the mask is.

    Raises:
        MaskMismatchError: names every tensor, and says what sparsity an average would have.
    """
    problems: list[Problem] = []
    union = mask
    for model in models:
        values = {name: as_array(model.read(name)) for name in mask}
        broken = mask.broken_by(values)
        if broken:
            union = union | Mask.of_nonzero(values)
        problems += [
            Problem(model.path, name, f"{n} weights that are pruned elsewhere", "zeros there")
            for name, n in broken.items()
        ]
    if problems:
        lines = [f"  {p.ingredient}: {p.tensor} has {p.found}" for p in problems[:20]]
        raise MaskMismatchError(
            "\n".join(
                [
                    f"these models do not share the mask; their average would have a sparsity of "
                    f"{union.sparsity:.4f} instead of {mask.sparsity:.4f}:",
                    *lines,
                ]
            ),
            problems,
        )


def geometry(
    start: Checkpoint, mask: Mask, models: Sequence[Checkpoint]
) -> tuple[list[float], list[JSON]]:
    """How far each model moved from the pruned start, and the angles between their moves.

    Returns:
        ‖θᵢ − θᵖ‖ by model, and `{a, b, degrees}` for every pair (indices from 0), over all
        parameters.
    """
    origin = Mixture(Ingredients([start]), mask=mask)
    gram = measure_geometry(models, origin).gram
    units = np.eye(len(models))
    angles: list[JSON] = [
        {"a": a, "b": b, "degrees": angle(gram, units[a], units[b])}
        for a, b in itertools.combinations(range(len(models)), 2)
    ]
    return [math.sqrt(max(0.0, float(square))) for square in np.diag(gram)], angles


def own_seeds(seed: int, phase: int, m: int) -> list[int]:
    """Seeds of `m` retrainings in one phase (from 0).

    >>> own_seeds(2, 0, 3), own_seeds(2, 1, 3)
    ([2000, 2001, 2002], [2100, 2101, 2102])
    """
    if m > 100:
        raise TrainingError(f"{m} candidates, expected at most 100")
    return [1000 * seed + 100 * phase + i for i in range(m)]
