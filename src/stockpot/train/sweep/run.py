"""Making many ingredients from one start, side by side, resumably."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from stockpot import formats as checkpoints
from stockpot._records import parse, read_json, recorded_path
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import ReportError, TrainingError, WorkerError
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.splits import dataset_fingerprint, split_fingerprint, split_to_choose_on
from stockpot.evaluate.task import Task
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.base import Checkpoint
from stockpot.io import atomic as _io
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune
from stockpot.train.run_folder import RunFolder
from stockpot.train.sweep.command import check_command, run_command
from stockpot.train.sweep.named import resolve_space
from stockpot.train.sweep.options import TWELVE_RUNS, SweepOptions, TrainFunction
from stockpot.train.sweep.records import (
    RunRecord,
    as_json,
    environment,
    read_runs,
    run_name,
    run_path,
    write_index,
    write_table,
)
from stockpot.train.sweep.space import Space
from stockpot.train.sweep.study import STORAGE, Study
from stockpot.train.task_maker import TaskOrMaker, make_task, task_for_workers
from stockpot.train.weights import Start, as_checkpoint, save_weights
from stockpot.workers import ONE_WORKER, JobResult, WorkerOptions, run_jobs
from stockpot.workers.jobs import JobError


@dataclass(frozen=True)
class SweepResult:
    """The base, and every run of the folder, failed ones included, by index."""

    folder: str
    base: str
    runs: tuple[RunRecord, ...]

    @property
    def paths(self) -> list[str]:
        """Checkpoints of the runs that are done, in order."""
        return [str(Path(self.folder) / run.path) for run in self.runs if run.done]

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts may rely on: `base`, `runs` and `failed`."""
        done = [run for run in self.runs if run.done]
        return {
            "base": self.base or None,
            "runs": [
                {
                    "path": path,
                    "hyperparameters": dict(run.hyperparameters),
                    "scores": run.scores,
                    "seed": run.seed,
                    "averages": dict(run.averages),
                }
                for path, run in zip(self.paths, done, strict=True)
            ],
            "failed": [
                {"name": run.name, "error": run.error} for run in self.runs if run.error is not None
            ],
        }

    def raise_failures(self) -> None:
        """Raise when runs failed, for callers that need all of them.

        Raises:
            WorkerError: naming every failed run with its reason.
        """
        failed = [run for run in self.runs if run.error is not None]
        if failed:
            lines = [f"  {r.name}: {r.error['type']}: {r.error['message']}" for r in failed]  # type: ignore[index]
            names = [run.name for run in failed]
            raise WorkerError(f"{len(failed)} runs failed:\n" + "\n".join(lines), names)


@dataclass(frozen=True)
class _Job:
    """What a worker needs for one run, besides the task."""

    index: int
    seed: int
    hyperparameters: Mapping[str, Any]
    folder: str
    base: str
    suffix: str
    threads: int
    device: str | None
    cache: str | None
    data: Mapping[str, str]
    train: TrainFunction | str | None


def run_sweep(
    task: TaskOrMaker | None,
    base: Start | None,
    options: SweepOptions = TWELVE_RUNS,
    *,
    out: StrPath,
    workers: WorkerOptions = ONE_WORKER,
    cache: StrPath | None = None,
    progress: Progress = no_progress,
    on_run: Callable[[RunRecord], None] | None = None,
) -> SweepResult:
    """Fine-tune ingredients from `base` into the folder `out`.

    Every checkpoint is a function of task, base, space, seed, index and threads, never of workers,
    kills or of how many runs there are: called again, a killed sweep continues, and a larger
    `n_runs` adds to what is there. A run that fails is recorded with its traceback and does not
    stop the others.

    The folder holds `run-00.safetensors` with `run-00.json` for each run, `averages/`, `runs.jsonl`
    (a line per run), `runs.parquet` (the same, flat, where pyarrow is installed) and `sweep.json`.
    Finished runs are scored on every split of the task into the journal of `cache`, where recipes
    with the same cache find them; nothing is chosen on them here.

    Args:
        task: a task, or a function that makes one, which every worker calls for itself (needed
            where the task cannot be pickled). None only with `options.train`.
        base: where all runs start; a state dict or module is first written to `out`. None only with
            `options.train`, for training that has a start of its own.
        options: how many runs, drawn from which space, and how.
        out: folder of the sweep.
        workers: runs side by side. On a Ray cluster `out` and `cache` must be visible to all nodes.
        cache: folder of the journal; None for no journal.
        progress: called in runs.
        on_run: called with each new record, in order of completion.

    Raises:
        OutputExistsError: the folder has runs of a sweep with other settings.
        TrainingError: the settings contradict each other.
    """
    folder = Path(out)
    law = resolve_space(options.space)
    made = make_task(task)
    if made is None and options.train is None:
        raise TrainingError("a sweep needs a task, or a training command of your own (train=…)")
    if base is None and options.train is None:
        raise TrainingError("a sweep needs a base: the checkpoint that all runs start from")
    waiting = _waiting(folder, options.n_runs, retry_failed=options.retry_failed)
    # Before anything is written: settings that fail must not bind the folder to themselves.
    _check(options, law, made, waiting)
    start = _place_base(base, folder)
    data = _data_fingerprints(made)
    identity = cast("dict[str, JSON]", as_json(_identity(options, law, start, data, workers)))
    claim = functools.partial(_sweep_folder(folder).claim, identity)
    claim()
    job = _Job(
        index=-1, seed=options.seed, hyperparameters={}, folder=str(folder.absolute()),
        suffix=_SUFFIXES[options.format], threads=workers.threads or 1, device=options.device,
        base="" if start is None else recorded_path(start.path), data=data,
        cache=None if cache is None else str(Path(cache).absolute()), train=options.train,
    )  # fmt: skip
    trials = _study(folder, law, made, options)
    progressing = _Progressing(law, made, trials, job, options.n_runs, progress, on_run, claim)
    progressing.begin(waiting)
    progressing.catch_up(waiting)
    # A sampler that learns proposes for the next workers only, knowing the runs before them.
    several = options.sampler == "random"
    batch = max(1, len(waiting) if several else workers.n_workers or 1)
    in_processes = workers.n_workers if workers.ray is None else None
    for first in range(0, len(waiting), batch):
        drawn = [progressing.draw(i) for i in waiting[first : first + batch]]
        # The longest first, so that no worker is left with one at the end.
        drawn.sort(key=lambda job: -_length(job))
        jobs = {run_name(job.index): job for job in drawn}
        run_jobs(
            _run_one,
            jobs,
            setup=task_for_workers(task, made, n_workers=in_processes),
            workers=workers,
            on_result=lambda result, jobs=jobs: progressing.finish(jobs[result.name], result),  # type: ignore[misc]
        )
    write_index(folder)
    write_table(folder)
    found = tuple(record for record in read_runs(folder) if record.index < options.n_runs)
    return SweepResult(str(folder), "" if start is None else start.path, found)


_SUFFIXES = {"safetensors": ".safetensors", "pt": ".pt", "folder": ""}


def _identity(
    options: SweepOptions,
    law: Space,
    start: Checkpoint | None,
    data: Mapping[str, str],
    workers: WorkerOptions,
) -> dict[str, Any]:
    train = options.train
    return {
        "base": None if start is None else {"path": start.path, "fingerprint": start.fingerprint},
        "data": data,
        "space": law.as_data(),
        "seed": options.seed,
        "threads": workers.threads or 1,
        "sampler": options.sampler,
        "train": train if isinstance(train, str) else None if train is None else "a function",
    }


def _sweep_folder(folder: Path) -> RunFolder:
    """The sweep's folder: its runs are worth keeping, and Optuna's trials are not without them."""
    return RunFolder(
        path=folder, marker="sweep.json", kind="a sweep", owned=(STORAGE,),
        made=("run-*", ".run-*"),
    )  # fmt: skip


def _check(options: SweepOptions, law: Space, task: Task | None, waiting: list[int]) -> None:
    """Refuse, before anything is trained, what no run could use."""
    drawn = [law.draw(index, seed=options.seed) for index in waiting]
    if isinstance(options.train, str):
        for values in drawn[:1]:
            check_command(options.train, set(values))
    elif options.train is None:
        if waiting and task is not None and task.train_set is None:
            raise TrainingError(
                "the task has no train_set, so no run can be trained: give the task one, or "
                "train with a program of your own (--train)"
            )
        for values in drawn:
            TrainConfig.from_mapping({k: v for k, v in values.items() if k != "seed"})


@dataclass
class _Progressing:
    """The sweep as its runs come in; stateful: it counts them."""

    law: Space
    task: Task | None
    trials: Study | None
    job: _Job
    n_runs: int
    progress: Progress
    on_run: Callable[[RunRecord], None] | None
    claim: Callable[[], None]
    done: int = 0

    def begin(self, waiting: list[int]) -> None:
        """Count those that earlier calls have finished."""
        self.done = self.n_runs - len(waiting)
        self.progress(self.done, self.n_runs, "runs")

    def catch_up(self, waiting: list[int]) -> None:
        """Tell the study of runs whose sweep was killed between keeping the record and telling."""
        if self.trials is None:
            return
        for record in read_runs(self.job.folder):
            if record.index not in waiting:
                self.trials.record(record, _held_out_value(record, self.task))

    def draw(self, index: int) -> _Job:
        """The job of run `index`."""
        if self.trials is not None and self.trials.sampler != "random":
            values = self.trials.propose(index)
        else:
            values = self.law.draw(index, seed=self.job.seed)
        seed = int(values.pop("seed", 1000 * self.job.seed + index))
        return replace(self.job, index=index, seed=seed, hyperparameters=values)

    def finish(self, job: _Job, result: JobResult[RunRecord]) -> None:
        """Keep the record of a run that has just come in."""
        record = _failed(job, result.error) if result.error is not None else result.value
        assert record is not None
        # Until its first run, another sweep may have taken the folder.
        self.claim()
        record.save(self.job.folder)
        if self.trials is not None:
            self.trials.record(record, _held_out_value(record, self.task))
        write_index(self.job.folder)
        self.done += 1
        self.progress(self.done, self.n_runs, "runs")
        if self.on_run is not None:
            self.on_run(record)


def _length(job: _Job) -> float:
    epochs = job.hyperparameters.get("epochs", 0)
    return float(epochs) if isinstance(epochs, (int, float)) else 0.0


def _place_base(base: Start | None, folder: Path) -> Checkpoint | None:
    """The base as a file: workers read it for themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    if base is None:
        return None
    start = as_checkpoint(base)
    if start.format != "memory":
        return start
    path = folder / "base.safetensors"
    if not path.exists():
        values = {name: start.read(name) for name in start}
        save_weights(path, values, like=start)
    placed = checkpoints.open(path)
    if placed.fingerprint != start.fingerprint:
        raise TrainingError(
            f"{path} is another base than the one given; continue with the same, or choose "
            "another folder"
        )
    return placed


def _data_fingerprints(task: Task | None) -> dict[str, str]:
    if task is None:
        return {}
    found = {name: split_fingerprint(split).value for name, split in task.splits.items()}
    if task.train_set is not None:
        found["train"] = dataset_fingerprint(task.train_set).value
    return found


def _study(folder: Path, space: Space, task: Task | None, options: SweepOptions) -> Study | None:
    if options.sampler == "random" and not options.study:
        return None
    higher = True if task is None else task.metric.higher_is_better
    return Study(folder, space, sampler=options.sampler, seed=options.seed, higher_is_better=higher)


def _waiting(folder: Path, n_runs: int, *, retry_failed: bool) -> list[int]:
    def finished(record: RunRecord) -> bool:
        return (folder / record.path).exists() if record.done else not retry_failed

    done = {record.index for record in read_runs(folder) if finished(record)}
    return [index for index in range(n_runs) if index not in done]


def _held_out_value(record: RunRecord, task: Task | None) -> float | None:
    if task is None or record.scores is None:
        return None
    found = record.scores.get(_chosen_split(task))
    return None if found is None else float(found["value"])


def _chosen_split(task: Task) -> str:
    held_out = [name for name, split in task.splits.items() if split.role == "held-out"]
    return split_to_choose_on(task, held_out[0] if len(held_out) > 1 else None)


def _failed(job: _Job, error: JobError) -> RunRecord:
    return RunRecord(
        index=job.index,
        name=run_name(job.index),
        path=run_path(job.folder, job.index, job.suffix).name,
        status="failed",
        hyperparameters=job.hyperparameters,
        seed=job.seed,
        threads=job.threads,
        error=asdict(error),
    )


def _run_one(task: Task | None, job: _Job) -> RunRecord:
    """One run, in a worker: train, score, and return the record."""
    out = run_path(job.folder, job.index, job.suffix)
    if job.train is not None:
        trained: dict[str, Any] = _train_outside(job, out)
    else:
        assert task is not None
        trained = _train_here(task, job, out)
    scores: Mapping[str, Any] | None = None
    averages: dict[str, dict[str, Any]] = {}
    if task is not None:
        device = "auto" if job.device is None else job.device
        evaluator = TaskEvaluator(task, cache=job.cache, device=device, batchnorm="averaged")
        scores = scores_to_json(evaluator.scores(checkpoints.open(out)))
        for kind, path in trained.pop("averages", {}).items():
            place = out.parent / "averages" / Path(path).name
            found = scores_to_json(evaluator.scores(checkpoints.open(place)))
            averages[kind] = {"path": f"averages/{Path(path).name}", "scores": found}
        evaluator.journal.close()
    _trained_file(out).unlink(missing_ok=True)
    return RunRecord(
        index=job.index,
        name=run_name(job.index),
        path=out.name,
        status="done",
        hyperparameters=job.hyperparameters,
        seed=job.seed,
        scores=scores,
        averages=averages,
        threads=job.threads,
        data=job.data,
        base={"path": job.base, "fingerprint": checkpoints.open(job.base).fingerprint}
        if job.base
        else {},
        fingerprint=checkpoints.open(out).fingerprint,
        environment=environment(job.device),
        **trained,
    )


@dataclass(frozen=True)
class _Trained:
    """What a finished training notes before its result is scored."""

    epochs: tuple[Mapping[str, Any], ...]
    averages: Mapping[str, str]
    seconds: float
    n_steps: int
    micro_batches: int


def _train_here(task: Task, job: _Job, out: Path) -> dict[str, Any]:
    """Train, or read what an earlier attempt noted that was killed while it scored its result."""
    noted = _trained_file(out)
    if out.exists() and noted.exists():
        return dict(vars(parse(_Trained, read_json(noted), error=ReportError)))
    config = TrainConfig.from_mapping(job.hyperparameters)
    # A checkpoint without such a note is of a run that was killed between the two.
    result = fine_tune(
        task, job.base, config, out=out, seed=job.seed, device=job.device, force=True
    )
    trained = {
        "epochs": tuple(asdict(record) for record in result.epochs),
        "averages": dict(result.averages),
        "seconds": result.seconds,
        "n_steps": result.n_steps,
        "micro_batches": result.micro_batches,
    }
    _io.write_json(noted, as_json(trained))
    return trained


def _train_outside(job: _Job, out: Path) -> dict[str, Any]:
    import time

    started = time.perf_counter()
    given = {"base": job.base, "index": job.index, "seed": job.seed, "out": str(out)}
    values = {**job.hyperparameters, **given}
    if isinstance(job.train, str):
        log = out.parent / "logs" / f"{run_name(job.index)}.log"
        run_command(job.train, values, out, log)
    else:
        assert job.train is not None
        job.train(values)
    return {"seconds": time.perf_counter() - started}


def _trained_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.trained")
