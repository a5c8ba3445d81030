"""One plain fine-tuning loop for every kind of task."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import TrainingError
from stockpot.evaluate.batchnorm import has_batchnorm, recalibrate
from stockpot.evaluate.metrics import value_of
from stockpot.evaluate.runner import to_device
from stockpot.evaluate.task import Role, Task
from stockpot.formats.base import Checkpoint
from stockpot.formats.table import writes_folder
from stockpot.io import atomic as _io
from stockpot.train import _isolation, _resume, step
from stockpot.train.config import TrainConfig
from stockpot.train.ema import ExponentialMean, RunningMean, snapshot
from stockpot.train.pruning import Pruning, make_pruner
from stockpot.train.run import EpochRecord, Run, Scorer, begin_phase
from stockpot.train.schedule import learning_rate, warmup_steps
from stockpot.train.weights import Start, as_checkpoint, load_start, save_weights


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run left behind.

    `averages` maps `"ema-0.999"` or `"swa"` to files beside the raw weights, each an ingredient of
    its own. `seconds` is training time over all attempts, without loading and saving.
    `micro_batches` is in how many parts each batch was computed at the end: more than one if the
    device ran out of memory.
    """

    path: str
    averages: Mapping[str, str]
    epochs: tuple[EpochRecord, ...]
    seed: int
    config: TrainConfig
    n_steps: int
    kept_epoch: int
    seconds: float
    resumed_at_step: int | None
    micro_batches: int


# Training lasts at least so many times as long as saving the state in between takes.
_SAVE_INTERVAL = 20


def fine_tune(
    task: Task,
    start: Start,
    config: TrainConfig,
    *,
    out: StrPath,
    seed: int = 0,
    pruning: Pruning | None = None,
    device: str | None = None,
    score: Scorer | None = None,
    progress: Progress = no_progress,
    save_every_steps: int | None = None,
    resume: bool = True,
    force: bool = False,
) -> TrainResult:
    """Fine-tune the task's model from `start` and write it to `out`.

    The result is a function of task, start, config, seed and the number of threads: data order,
    augmentation and dropout have seeds of their own, the global generators are left as they were.
    A killed run that is called again goes on from its last saved step to the same bytes; what it
    needs for that lies in `.NAME.state` beside `out` until the run is done. A data set that draws
    random numbers in worker processes can only be resumed so at the end of an epoch.

    Averages along the run (`config.ema_decays`, `config.swa_start_epoch`) are written to
    `averages/NAME-KIND.safetensors` in the folder of `out`.

    Args:
        task: needs a `train_set`; an optional method `augment(batch, generator)` changes each
            training batch.
        start: checkpoint, path, state dict or module with every tensor of the model.
        config: all hyper-parameters.
        out: a `.safetensors` or torch file, or a folder like that of `start`; tensors have the
            names and dtypes of `start`.
        seed: of data order, augmentation and dropout.
        pruning: a `Mask` whose zeros hold through the run, or a plan by which the run prunes
            itself: `GradualPruning`, `DynamicPruning`.
        device: `"cpu"`, `"cuda"`, …; None for the best one that accelerate finds.
        score: scores by split after an epoch; None for the task's metric on its held-out splits.
        progress: called after every step, in steps.
        save_every_steps: saves within epochs too. Ends of epochs are saved by themselves, but not
            so often that it would take a twentieth of the time.
        resume: whether to go on from a saved state; False starts over.
        force: overwrite `out`.

    Raises:
        MismatchError: `start`, or the mask, does not fit the model.
        OutputExistsError: `out` exists and `force` is False.
        TrainingError: no training set, contradicting settings, or a loss that is not finite.
    """
    path = Path(out)
    _io.refuse_existing(path, force=force, folder=writes_folder(path))
    base = as_checkpoint(start)
    with (
        _isolation.own_randomness(seed),
        _isolation.accelerator(config.precision, device) as engine,
    ):
        run = _prepare(task, base, config, seed, engine, score)
        run.pruner = make_pruner(pruning, run.raw_model)
        if run.pruner is not None and run.pruner.changes:
            _refuse_with_changing_mask(config)
        state_file = _resume.StateFile.beside(path, run, base)
        resumed_at = state_file.restore(run) if resume else None
        if resumed_at is None:
            begin_phase(run)
            if run.pruner is not None:
                run.pruner.begin()
        _train(run, progress, state_file, save_every_steps)
        averages = _save_all(run, path, base, force=force)
        state_file.remove()
    return TrainResult(
        path=str(path),
        averages=averages,
        epochs=tuple(run.history),
        seed=seed,
        config=config,
        n_steps=run.done_steps,
        kept_epoch=run.best_epoch if config.keep == "best" else len(run.history) - 1,
        seconds=run.seconds,
        resumed_at_step=resumed_at,
        micro_batches=run.micro_batches,
    )


def _prepare(
    task: Task,
    base: Checkpoint,
    config: TrainConfig,
    seed: int,
    engine: Any,
    score: Scorer | None,
) -> Run:
    if task.train_set is None:
        raise TrainingError("the task has no train_set, so nothing can be trained: give it one")
    n = len(task.train_set)  # type: ignore[arg-type]
    if n == 0:
        raise TrainingError("the task's train_set is empty")
    batch_size = min(n, config.batch_size or task.batch_size)
    if batch_size % engine.num_processes:
        raise TrainingError(
            f"a batch of {batch_size} cannot be shared by {engine.num_processes} processes"
        )
    per_epoch = n // batch_size
    total = per_epoch * config.total_epochs
    if config.max_steps is not None:
        total = min(total, config.max_steps)
    if warmup_steps(config, total) > total:
        raise TrainingError(
            f"{config.warmup_steps} warm-up steps do not fit in a run of {total} steps; lower "
            "warmup_steps, or give warmup_fraction"
        )
    model = task.build()
    load_start(model, base)
    scorer = _held_out_scorer(task, engine) if score is None else score
    model.to(engine.device)
    run = Run(task, config, seed, engine, model, scorer, n, batch_size, per_epoch, total)
    run.averages = {f"ema-{d}": ExponentialMean(d) for d in config.ema_decays}
    if config.pull_to_start > 0 or config.distill_from_start > 0:
        run.start = copy.deepcopy(model).eval().requires_grad_(False)
    if config.swa_start_epoch is not None:
        run.averages["swa"] = RunningMean()
    return run


def _refuse_with_changing_mask(config: TrainConfig) -> None:
    asked = [
        name
        for name, used in (
            ("ema_decays", bool(config.ema_decays)),
            ("swa_start_epoch", config.swa_start_epoch is not None),
            ('keep="best"', config.keep == "best"),
        )
        if used
    ]
    if asked:
        raise TrainingError(
            f"{', '.join(asked)} cannot be used while the mask still changes: the result would not "
            "be as sparse as asked for. Prune first, then train with the mask that was found"
        )


def _train(
    run: Run, progress: Progress, state_file: _resume.StateFile, save_every_steps: int | None
) -> None:
    saved_at, cost = run.seconds, 0.0
    while run.done_steps < run.total_steps:
        started, before = time.perf_counter(), run.seconds
        for batch in _epoch_batches(run):
            if run.done_steps >= run.total_steps:
                break
            step.train_step(run, batch, _learning_rate_now(run))
            run.done_steps += 1
            _update_averages(run)
            progress(run.done_steps, run.total_steps, "steps")
            run.seconds = before + time.perf_counter() - started
            if save_every_steps and run.done_steps % save_every_steps == 0:
                state_file.save(run)
        _end_epoch(run)
        run.seconds = before + time.perf_counter() - started
        due = run.seconds - saved_at >= _SAVE_INTERVAL * cost
        if due and run.done_steps < run.total_steps:
            started = time.perf_counter()
            state_file.save(run)
            saved_at, cost = run.seconds, time.perf_counter() - started


def _learning_rate_now(run: Run) -> float:
    """Learning rate of the next step."""
    return learning_rate(run.config, run.done_steps, run.total_steps, run.steps_per_epoch)


def _epoch_batches(run: Run) -> Iterator[Any]:
    """Batches of the current epoch that are still to come, this process's share of each."""
    within = run.done_steps % run.steps_per_epoch
    if within == 0:
        # Processes that share a batch must not draw the same dropout and augmentation for it.
        rank = run.accelerator.process_index
        where = (run.epoch, rank) if rank > 0 else (run.epoch,)
        _isolation.seed_everything(_isolation.seed_for(run.seed, "model", *where))
        run.generator.manual_seed(_isolation.seed_for(run.seed, "augment", *where))
        run.loss_sum = None
        run.raw_model.train()
    shuffler = torch.Generator().manual_seed(_isolation.seed_for(run.seed, "order", run.epoch))
    order = torch.randperm(run.n_examples, generator=shuffler)
    order = order[within * run.batch_size : run.steps_per_epoch * run.batch_size]
    rank, n_processes = run.accelerator.process_index, run.accelerator.num_processes
    indices = order[rank::n_processes].tolist()
    assert run.task.train_set is not None
    return iter(
        run.task.batches(run.task.train_set, indices, batch_size=run.batch_size // n_processes)
    )


def _update_averages(run: Run) -> None:
    if run.epoch < run.config.probe_epochs or not run.averages:
        return
    if run.done_steps % run.config.ema_every == 0:
        widened: dict[str, torch.Tensor] = {}
        for average in run.averages.values():
            if isinstance(average, ExponentialMean):
                average.update(run.live, widened=widened)
    swa = run.averages.get("swa")
    if swa is not None and run.done_steps % run.steps_per_epoch == 0:
        assert run.config.swa_start_epoch is not None
        swa_epochs = run.epoch - run.config.probe_epochs - run.config.swa_start_epoch
        if swa_epochs > 0 and swa_epochs % max(1, run.config.swa_cycle_epochs) == 0:
            swa.update(run.live)


def _end_epoch(run: Run) -> None:
    """Record and score the epoch that has just ended; begin the next phase if one follows."""
    epoch = (run.done_steps - 1) // run.steps_per_epoch
    steps = run.done_steps - epoch * run.steps_per_epoch
    assert run.loss_sum is not None
    loss = float(run.loss_sum) / steps
    if not torch.isfinite(torch.tensor(loss)):
        raise TrainingError(
            f"the training loss of epoch {epoch} is {loss}; lower lr ({run.config.lr:g}), lengthen "
            "the warm-up, or clip gradients"
        )
    last = run.done_steps >= run.total_steps
    if run.pruner is not None:
        run.pruner.check()
        if last:
            run.pruner.finish()
    scores: Mapping[str, float] = {}
    if last or (epoch + 1) % run.config.score_every == 0:
        run.raw_model.eval()
        with nullcontext() if run.pruner is None else run.pruner.sparse(), torch.inference_mode():
            scores = dict(run.score(run.raw_model))
        run.raw_model.train()
    rate = learning_rate(run.config, run.done_steps - 1, run.total_steps, run.steps_per_epoch)
    run.history.append(EpochRecord(epoch, loss, rate, scores))
    if run.config.keep == "best" and scores:
        _keep_best(run, epoch)
    if not last and run.epoch == run.config.probe_epochs > 0:
        begin_phase(run)


def _keep_best(run: Run, epoch: int) -> None:
    """Later epochs win ties: they have seen more."""
    quality = run.task.metric.quality
    values = {r.epoch: quality(next(iter(r.scores.values()))) for r in run.history if r.scores}
    if values[epoch] >= max(values.values()):
        run.best = {n: v.to("cpu", copy=True) for n, v in snapshot(run.raw_model).items()}
        run.best_epoch = epoch


def _held_out_scorer(task: Task, engine: Any) -> Scorer:
    splits = {name: s for name, s in task.splits.items() if s.role is Role.HELD_OUT}

    def score(model: nn.Module) -> dict[str, float]:
        found = {}
        for name, split in splits.items():
            outputs, targets = [], []
            for batch in task.batches(split.dataset):
                moved = to_device(batch, engine.device)
                with engine.autocast():
                    outputs.append(task.predict(model, moved).float().cpu())
                targets.append(task.targets(moved).cpu())
            whole = (torch.cat(outputs), torch.cat(targets))
            found[name] = float(value_of(task.metric, *whole, split.categories))
        return found

    return score


def _save_all(run: Run, path: Path, base: Checkpoint, *, force: bool) -> dict[str, str]:
    """Averages first: the checkpoint itself is the sign that the run is complete."""
    written: dict[str, str] = {}
    if not run.accelerator.is_main_process:
        return written
    if run.config.keep == "best":
        assert run.best is not None
        own = run.best
    else:
        own = {n: v.to("cpu", copy=True) for n, v in snapshot(run.raw_model).items()}
    for kind, average in run.averages.items():
        if average.count == 0:
            continue
        target = average_path(path, kind)
        values = _with_own_statistics(run, average.state_dict())
        save_weights(target, values, like=base, metadata={"average": kind}, force=True)
        written[kind] = str(target)
    save_weights(path, own, like=base, metadata={}, force=force)
    return written


def _with_own_statistics(run: Run, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`values`, with BatchNorm statistics from a calibration pass instead of averaged ones."""
    if not has_batchnorm(run.raw_model) or run.task.calibration_set is None:
        return values
    run.raw_model.load_state_dict(values)

    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        return run.task.predict(model, to_device(batch, run.accelerator.device))

    recalibrate(run.raw_model, run.task, forward=forward, seed=run.seed)
    return snapshot(run.raw_model)


def average_path(out: Path, kind: str) -> Path:
    """Where the average `kind` of the run that writes `out` lies; like `out`, a file or a folder.

    In a subfolder, because the folder of a sweep stands for its `run-*` files.
    """
    stem, suffix = (out.name, "") if writes_folder(out) else (out.stem, out.suffix)
    return out.parent / "averages" / f"{stem}-{kind}{suffix}"
