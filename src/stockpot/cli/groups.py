"""Groups of options that several commands share; each also does what its options are for."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import click

from stockpot._options import option
from stockpot._types import format_bytes, parse_bytes
from stockpot.cli.output import emit, note, progress_bar, table
from stockpot.formats.runs import RunChoice
from stockpot.mixing.reconcile import Reconcile

if TYPE_CHECKING:
    from stockpot._types import Progress, StrPath
    from stockpot.evaluate.cluster_pool import Cluster
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.mixing import Mixture
    from stockpot.mixing.engine import MixPlan, Saved
    from stockpot.mixing.ingredients import Ingredients
    from stockpot.recipes.soup import Soup
    from stockpot.tensors.spec import DType, TensorSpec

_TASK = "Data and metric: handwriting, a task.yaml, file.py:name, or lm-eval:TASKS."
_MOST_MODULES = 20
"""Rows of the table of what a rank cut off; the record has all."""
_CHECKPOINTS = "Files or model folders; a sweep's folder is its runs."


def _dtype(text: str) -> DType:
    from stockpot.tensors.spec import parse_dtype

    return parse_dtype(text)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints, to look at or to score."""

    heading: ClassVar[str] = "Checkpoints"

    checkpoints: tuple[str, ...] = option(positional=True, metavar="CKPT...", help=_CHECKPOINTS)
    key: str | None = option(
        None, help="Section of a torch file that holds the weights, such as ema or state_dict."
    )


@dataclass(frozen=True, kw_only=True)
class Inputs(Reconcile, RunChoice, Checkpoints):
    """Checkpoints to average, and what is done where they differ in form."""

    base: str | None = option(
        None,
        metavar="CKPT",
        help="The checkpoint that all were fine-tuned from; adapters name theirs.",
    )
    on_mismatch: Literal["error", "leave-out", "common"] = option(
        "error", help="What to do with ingredients that do not fit."
    )

    def open(self, dtype: DType | None = None) -> Ingredients:
        """The checkpoints, aligned for an output of type `dtype`."""
        from stockpot.formats.runs import find_runs
        from stockpot.mixing.ingredients import Ingredients

        return Ingredients(
            find_runs(self.checkpoints, self),
            base=self.base,
            on_mismatch=self.on_mismatch,
            key=self.key,
            reconcile=self.form(dtype),
        )


@dataclass(frozen=True, kw_only=True)
class InputsOfFit(Inputs):
    """Checkpoints to average, where `--by` says what has coefficients of its own."""

    by: str | None = option(
        None,
        flags=("--best-by",),
        metavar="METRIC",
        help="Metric of --best, as the trainer noted it.",
    )


@dataclass(frozen=True, kw_only=True)
class Show:
    """How the result is shown."""

    heading: ClassVar[str] = "Result"

    json: bool = option(False, help="One JSON object on stdout, also for failures.")
    debug: bool = option(False, help="With a failure, also where in the code it happened.")

    def emit(self, data: dict[str, Any], text: str) -> None:
        """Write the result of the command to stdout."""
        emit(data, text, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """A task that scores."""

    heading: ClassVar[str] = "Scores"

    task: str = option(metavar="TASK", help=_TASK)
    choose_on: str | None = option(
        None, metavar="SPLIT", help="Held-out split that decides, of several."
    )

    @property
    def given(self) -> bool:
        """Whether anything scores."""
        return True

    def evaluator(
        self,
        *,
        cache: StrPath | None,
        progress: Progress,
        models: Sequence[str] = (),
        **options: Any,
    ) -> Evaluator:
        """What scores `models`, with the options of an `Evaluator`."""
        from stockpot.evaluate.task_evaluator import TaskEvaluator
        from stockpot.tasks import resolve

        return TaskEvaluator(
            resolve(self.task, models=models), cache=cache, progress=progress, **options
        )

    def check(self, evaluator: Evaluator, cache: StrPath | None, progress: Progress) -> None:
        """Refuse a task of the user's that chooses on what it reports.

        Built-in tasks are known to be sound, and task files are looked at when they are loaded.
        """
        from stockpot.tasks.checks import check_apart
        from stockpot.tasks.lookup import in_python_file

        if in_python_file(self.task):
            splits = {name: evaluator.fingerprint(name) for name in evaluator.task.splits}
            check_apart(evaluator.task, splits, cache=cache, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A task or a program that scores."""

    heading: ClassVar[str] = "Scores"

    task: str | None = option(None, metavar="TASK", help=f"{_TASK} Or use --eval.")
    command: str | None = option(
        None,
        flags=("--eval",),
        metavar="CMD",
        excludes="task",
        help='A program that scores, in place of --task: "python score.py {checkpoint}"; it prints '
        "a number last, or JSON with score.",
    )
    eval_test: str | None = option(
        None, metavar="CMD", needs="command", help="Another that reports and never chooses."
    )
    direction: Literal["max", "min"] = option("max", help="Of the number that --eval prints.")
    eval_timeout: float | None = option(None, metavar="SECONDS", help="Most for one run.")
    eval_gpus: str | None = option(
        None,
        metavar="0,1",
        needs="command",
        help="GPUs that programs running at a time (--workers) share, each seeing its own.",
    )
    choose_on: str | None = option(
        None, metavar="SPLIT", help="Held-out split that decides, of several."
    )

    @property
    def given(self) -> bool:
        """Whether anything scores."""
        return self.task is not None or self.command is not None

    def require(self) -> None:
        """Refuse that nothing scores."""
        if not self.given:
            raise click.BadParameter("give --task, or --eval", param_hint="--task")

    def evaluator(
        self, *, cache: StrPath | None, progress: Progress, n_workers: int, **options: Any
    ) -> Evaluator:
        """What scores; a program has no use for the `options` of models."""
        shared: dict[str, Any] = {"cache": cache, "progress": progress, "n_workers": n_workers}
        if self.command is None:
            return self._of_task().evaluator(**shared, **options)
        if options.pop("cluster", None) is not None:
            raise click.BadParameter(
                "a cluster runs models of a --task; a program of --eval finds its own way",
                param_hint="--ray",
            )
        from stockpot.evaluate.command import CommandEvaluator

        return CommandEvaluator(
            self.command,
            test=None if self.eval_test is None else {"test": self.eval_test},
            higher_is_better=self.direction == "max",
            timeout_s=self.eval_timeout,
            deciding=self.deciding,
            gpus=[] if self.eval_gpus is None else self.eval_gpus.replace(" ", "").split(","),
            **shared,
        )

    @property
    def deciding(self) -> str | None:
        """A program that decides on what another fitted."""
        return None

    def check(self, evaluator: Evaluator, cache: StrPath | None, progress: Progress) -> None:
        """Refuse a task of the user's that chooses on what it reports."""
        if self.command is None:
            self._of_task().check(evaluator, cache, progress)

    def _of_task(self) -> TaskScores:
        self.require()
        return TaskScores(task=str(self.task))


@dataclass(frozen=True, kw_only=True)
class FittedScores(Scores):
    """A task or a program that scores, for what fits on some data and decides on others."""

    eval_deciding: str | None = option(
        None,
        metavar="CMD",
        needs="command",
        help="Like --eval, on other data: decides whether what --eval fitted is taken.",
    )

    @property
    def deciding(self) -> str | None:
        """A program that decides on what another fitted."""
        return self.eval_deciding


@dataclass(frozen=True, kw_only=True)
class Running:
    """How models are run, and where their scores are kept."""

    heading: ClassVar[str] = "Running models"

    device: str = option(
        "auto", help="auto (the accelerator there is), accelerate, cpu, cuda:1, xpu, mps, …"
    )
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", help="Of forward passes.")
    batch_size: int | None = option(None, minimum=1, help="Default: the task's own.")
    seed: int = option(0, help="Of orders and of bootstrap intervals.")
    batchnorm: Literal["averaged", "recalibrated", "clean"] | None = option(
        None,
        help="Running statistics of all that is scored: mixed like weights (a single model keeps "
        "its own), recomputed on the training set as it is trained on, or without augmentation. "
        "Default: recalibrated where the task has a training set; interpolate averages.",
    )
    cache: str | None = option(
        None, metavar="DIR", help="Journal of what was scored; default: the user's."
    )
    no_journal: bool = option(
        False, excludes="cache", help="Score anew, and remember nothing of it."
    )

    @property
    def n_workers(self) -> int:
        """How many processes run models."""
        return 1

    @property
    def cluster(self) -> Cluster | None:
        """The Ray cluster that runs models; None for this machine."""
        return None

    @contextlib.contextmanager
    def evaluator_if_any(
        self, scores: Scores | TaskScores, models: Sequence[str] = ()
    ) -> Iterator[Evaluator | None]:
        """The evaluator that the options name, as `evaluator` has it; None if they name none."""
        if not scores.given:
            yield None
            return
        with self.evaluator(scores, models) as evaluator:
            yield evaluator

    @contextlib.contextmanager
    def evaluator(
        self, scores: Scores | TaskScores, models: Sequence[str] = ()
    ) -> Iterator[Evaluator]:
        """What the options name to score `models`, with progress; closed at the end."""
        from stockpot.io.kernel import keep_freed_memory
        from stockpot.io.paths import cache_dir

        keep_freed_memory()
        folder = None if self.no_journal else cache_dir() if self.cache is None else self.cache
        with progress_bar() as progress:
            evaluator = scores.evaluator(
                cache=folder,
                progress=progress,
                n_workers=self.n_workers,
                device=self.device,
                precision=self.precision,
                batch_size=self.batch_size,
                seed=self.seed,
                batchnorm=self.batchnorm,
                cluster=self.cluster,
                models=models,
            )
            try:
                scores.check(evaluator, folder, progress)
                yield evaluator
            finally:
                evaluator.close()


@dataclass(frozen=True, kw_only=True)
class SharedRunning(Running):
    """How models are run, by several processes."""

    workers: int | None = option(
        None,
        minimum=1,
        help="Processes that divide the scoring, on the CPU; with --eval, programs run at a time. "
        "Default: 1, or all that --ray has room for.",
    )
    ray: str | None = option(
        None, metavar="ADDRESS", help="Work on a Ray cluster: auto, host:port, or local."
    )
    gpus_per_worker: float = option(0.0, needs="ray", help="Of the Ray cluster; 0 is no GPU.")

    @property
    def n_workers(self) -> int:
        """How many processes run models."""
        return 1 if self.workers is None else self.workers

    @property
    def cluster(self) -> Cluster | None:
        """The Ray cluster that runs models."""
        if self.ray is None:
            return None
        from stockpot.evaluate.cluster_pool import Cluster

        return Cluster(self.ray, self.gpus_per_worker, self.workers)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a checkpoint is written, and in what form."""

    heading: ClassVar[str] = "Output"

    output: str = option(
        flags=("-o", "--output"),
        metavar="OUT",
        help="A .safetensors or .pt file; any other name becomes a model folder.",
    )
    config_from: str | None = option(
        None, metavar="DIR", help="Model folder to copy config and tokenizer from."
    )
    max_shard_size: int | None = option(
        None, metavar="SIZE", parse=parse_bytes, help="Largest file of a folder, such as 5GB."
    )
    force: bool = option(False, help="Overwrite the output.")

    def __post_init__(self) -> None:
        if not self.output:
            raise click.BadParameter("it is empty", param_hint="--output")

    def check(self) -> None:
        """Refuse an output that exists now, and not after an hour of work."""
        from stockpot.formats.table import writes_folder
        from stockpot.io.atomic import refuse_existing

        refuse_existing(self.output, force=self.force, folder=writes_folder(self.output))

    def check_room(self, tensors: Mapping[str, TensorSpec], dtype: DType | None = None) -> None:
        """Refuse now, before any value is read, what the disk has no room for.

        Raises:
            CheckpointError: less is free than such tensors take, the floating ones of type `dtype`.
        """
        from stockpot.formats.remote import has_scheme
        from stockpot.io.atomic import require_space

        if has_scheme(self.output):
            return
        bits = sum(
            one.numel * (one.dtype if dtype is None or not one.dtype.mixable else dtype).bits
            for one in tensors.values()
        )
        parents = Path(os.path.realpath(self.output)).parents
        require_space(next(folder for folder in parents if folder.is_dir()), bits // 8)

    @property
    def layout(self) -> dict[str, Any]:
        """How the files are laid out, as the library's functions take it."""
        return {"config_from": self.config_from, "max_shard_bytes": self.max_shard_size}

    def save(self, soup: Soup) -> tuple[dict[str, Any], str]:
        """Save `soup`; what happened as JSON keys and as text."""
        plan = soup.mixture.plan(self.output, **self.layout)
        _notes(soup, plan)
        return self._write(soup, plan)

    def _write(self, soup: Soup, plan: MixPlan) -> tuple[dict[str, Any], str]:
        with progress_bar() as progress:
            saved = soup.save(self.output, force=self.force, progress=progress, plan=plan)
        return self._said(soup, saved)

    def _said(self, soup: Soup, saved: Saved) -> tuple[dict[str, Any], str]:
        for text in saved.notes:
            note(text)
        data, text = _saved(soup.mixture, saved)
        return data, f"{text}\n\n{_next_steps(soup, saved)}"


@dataclass(frozen=True, kw_only=True)
class Saving(Output):
    """How a soup is saved, or planned."""

    dtype: DType | None = option(
        None, parse=_dtype, help="Type of the output, such as bf16; default: that of the inputs."
    )
    max_memory: int | None = option(
        None, metavar="SIZE", parse=parse_bytes, help="Memory to stay under: 1GB, 2GiB."
    )
    threads: int = option(2, minimum=1, help="Threads that read, sum and write.")
    dry_run: bool = option(False, help="Say what would be read, written and needed; write nothing.")

    def check(self) -> None:
        """Refuse an output that exists now; a dry run writes none."""
        if not self.dry_run:
            super().check()

    @property
    def layout(self) -> dict[str, Any]:
        """How the files are laid out and written, as the library's functions take it."""
        return {**super().layout, "threads": self.threads, "max_memory": self.max_memory}

    def _write(self, soup: Soup, plan: MixPlan) -> tuple[dict[str, Any], str]:
        return _planned(soup.mixture, plan) if self.dry_run else super()._write(soup, plan)


def _notes(soup: Soup, plan: MixPlan) -> None:
    for text in soup.notes:
        note(text)
    for left in soup.mixture.ingredients.left_out:
        n = len(left.problems)
        note(f"left out: {left.path} ({n} problem{'s' * (n != 1)}; see stockpot inspect)")
    for text in plan.output.notes:
        note(text)
    if plan.output.differing:
        donors = {source.rpartition("/")[0] for _, source in plan.output.copies}
        note(
            f"side files that differ between ingredients: {', '.join(plan.output.differing)}; "
            f"taken from {', '.join(sorted(donors)) or 'none of them'} (choose with --config-from)"
        )


def _ingredients(mixture: Mixture, fingerprints: tuple[str | None, ...]) -> list[dict[str, Any]]:
    shares = mixture.coefficients.vectors.get("", (None,) * len(mixture.ingredients))
    return [
        {"path": given.path, "fingerprint": fingerprint, "coefficient": share}
        for given, fingerprint, share in zip(mixture.ingredients, fingerprints, shares, strict=True)
    ]


def _saved(mixture: Mixture, saved: Saved) -> tuple[dict[str, Any], str]:
    ingredients = _ingredients(mixture, saved.fingerprints)
    data: dict[str, Any] = {
        "output": saved.path,
        "fingerprint": saved.fingerprint,
        "ingredients": ingredients,
        "left_out": [left.path for left in mixture.ingredients.left_out],
        "sparsity": None if mixture.mask is None else mixture.mask.sparsity,
        "bytes_read": saved.bytes_read,
        "bytes_written": saved.bytes_written,
        "seconds": saved.seconds,
    }
    moved = saved.bytes_read + saved.bytes_written
    used = [one for one in ingredients if one["coefficient"] != 0]
    text = (
        f"{saved.path}: {format_bytes(saved.bytes_written)} from {len(used)} "
        f"ingredient{'s' if len(used) != 1 else ''} in {saved.seconds:.2f} s "
        f"({format_bytes(int(moved / max(saved.seconds, 1e-9)))}/s)"
    )
    cut = None if mixture.adapters is None else mixture.adapters.cut_off()
    if cut is not None:
        data["adapter"] = cut
        text = f"{text}\n\n{cut_off_text(cut)}"
    if not mixture.coefficients.vectors.get(""):
        return data, text
    rows = [[one["path"], f"{one['coefficient']:.6g}"] for one in used]
    return data, f"{text}\n\n{table(['ingredient', 'coefficient'], rows)}"


def _next_steps(soup: Soup, saved: Saved) -> str:
    """The commands that most people want next, for the shell and for Python."""
    from stockpot.formats.adapters.reading import how_to_load
    from stockpot.recipes.card import how_to_load_folder

    path = shlex.quote(saved.path)
    adapter = None if soup.mixture.adapters is None else how_to_load(saved.path)
    any_kind = f'stockpot.open("{saved.path}").load_into(model)'
    load = adapter or how_to_load_folder(saved.path) or any_kind
    scored = any(score is not None for score in soup.scores.values())
    rows = [
        ["next: load it", load],
        ["      check it", f"stockpot verify {path}"],
        *([["      see why", f"stockpot report {path} -o report.html"]] if scored else []),
    ]
    return "\n".join(f"{first:<16}{rest}" for first, rest in rows)


def cut_off_text(cut: Mapping[str, Any]) -> str:
    """What a rank cut off each module, the worst first."""
    modules = sorted(
        cut["modules"].items(), key=lambda one: -one[1]["error"] / (one[1]["norm"] or 1)
    )
    rows = [[m, *_error(found)] for m, found in modules[:_MOST_MODULES]]
    rows.append([f"all {len(modules)}", *_error(cut)])
    more = len(modules) - _MOST_MODULES
    rest = f"\n({more} more modules in the record)" if more > 0 else ""
    heads = [f"rank {cut['rank']}", "norm of the update", "cut off", "share"]
    return table(heads, rows) + rest


def _error(found: Mapping[str, Any]) -> list[str]:
    norm, error = found["norm"], found["error"]
    return [f"{norm:.4g}", f"{error:.4g}", f"{100 * error / (norm or 1):.2f} %"]


_MOST_TAKEN = 30


def _planned(mixture: Mixture, plan: MixPlan) -> tuple[dict[str, Any], str]:
    files = [{"name": file.name, "bytes": file.size} for file in plan.output.files]
    side = sorted(name for name, _ in (*plan.output.copies, *plan.output.rewritten))
    data = {
        "dry_run": True,
        "output": plan.output.path,
        "ingredients": _ingredients(mixture, (None,) * len(mixture.ingredients)),
        "left_out": [left.path for left in mixture.ingredients.left_out],
        "bytes_read": plan.bytes_to_read,
        "bytes_written": plan.bytes_to_write,
        "seconds": None,
        "memory_bytes": plan.memory,
        "threads": plan.threads,
        "files": files,
        "side_files": side,
        "differing": list(plan.output.differing),
        "replaced": plan.output.replaced(),
    }
    rows = [
        ["read", format_bytes(plan.bytes_to_read)],
        ["written, and disk needed", format_bytes(plan.bytes_to_write)],
        ["memory", format_bytes(plan.memory)],
        ["threads", str(plan.threads)],
        ["ingredients", str(len(mixture.ingredients))],
        ["files", str(len(files))],
    ]
    lines = [table([f"{plan.output.path} (nothing written)", ""], rows)]
    taken, replaced = [one.path for one in mixture.ingredients], plan.output.replaced()
    more = f" … ({len(taken)} in all)" if taken[_MOST_TAKEN:] else ""
    lines.append(f"taken: {', '.join(taken[:_MOST_TAKEN])}{more}")
    lines += [f"side files: {', '.join(side)}"] if side else []
    lines += [f"replaces, with --force: {', '.join(replaced)}"] if replaced else []
    return data, "\n".join(lines)
