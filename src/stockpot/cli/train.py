"""Commands that train: demo, sweep, sparse."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stockpot._options import option
from stockpot.cli.groups import Output, Running, Show, TaskScores
from stockpot.cli.output import note, progress_bar, score_table, table
from stockpot.io.paths import short_name
from stockpot.train.sparse.soup import SparseSoup
from stockpot.train.sweep.options import SweepOptions
from stockpot.train.zoo.options import ZooTuning
from stockpot.workers import WorkerOptions

if TYPE_CHECKING:
    from stockpot.demo import DemoResult
    from stockpot.evaluate.compare import Difference
    from stockpot.train.sparse.options import SparseResult
    from stockpot.train.sweep.run import SweepResult
    from stockpot.train.zoo.tuning import ZooResult

_DEMO_SPLITS = ("held-out", "test", "shift_average", "fonts")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demo runs and where."""

    heading: ClassVar[str] = "Demo"

    output: str = option(
        "stockpot-demo", flags=("-o", "--output"), metavar="DIR",
        help="Folder of everything it makes.",
    )  # fmt: skip
    quick: bool = option(False, help="Fewer and shorter runs.")
    wide: bool = option(False, help="A sweep so wide that averaging hardly helps.")
    seed: int = option(0, help="Of data, base and sweep.")
    workers: int | None = option(
        None, minimum=1, help="Processes; default: one per core. Same result."
    )
    force: bool = option(False, help="Replace a demo that had other settings.")


def demo(demo: DemoOptions, show: Show) -> None:
    """Run the whole method on real handwriting, in minutes.

    Trains a base on printed digits, fine-tunes a sweep on handwriting, makes soups chosen on
    held-out digits, and reports on test digits and seven shifts. Nothing is downloaded. A demo that
    was killed continues.

    \b
    stockpot demo
    stockpot demo --quick -o /tmp/demo
    stockpot demo --wide -o wide-demo
    """
    from stockpot.demo import run
    from stockpot.tasks.handwriting.lab import FULL, QUICK, WIDE

    with progress_bar() as progress:
        result = run(
            demo.output, lab=QUICK if demo.quick else WIDE if demo.wide else FULL,
            seed=demo.seed, force=demo.force, n_workers=demo.workers, progress=progress,
        )  # fmt: skip
    show.emit(result.to_json(), _demo_text(result))


def _demo_text(result: DemoResult) -> str:
    from stockpot.demo import HEADLINE, NAMED
    from stockpot.evaluate.compare import scores_to_json

    shown = {
        name: scores_to_json({split: result.scores[name].get(split) for split in _DEMO_SPLITS})
        for name in HEADLINE
    }
    gains = [
        [name, *(_points(by_split.get(split)) for split in ("test", "shift_average"))]
        for name, by_split in result.gains.items()
        if name in HEADLINE[2:]
    ]
    kept = ", ".join(result.kept)
    parts = [
        f"{result.headline} ({NAMED}, named beforehand)",
        score_table(shown),
        "accuracy, ± half the width of 95 % intervals; chosen on held-out only",
        table(["points over best-single", "test", "shift_average"], gains),
        f"best-single is {result.best}; greedy kept {kept}; wise-ft has alpha {result.alpha:g}; "
        f"auto takes {result.chosen}",
        f"{result.report}  ({result.seconds:.0f} s)",
    ]
    return "\n\n".join(part for part in parts if part)


def _points(gain: Difference | None) -> str:
    """A difference of accuracies in points, with its interval."""
    if gain is None:
        return "-"
    value, low, high = (f"{100 * number:+.1f}" for number in gain.numbers)
    return f"{value} ({low} to {high})"


def _factor(text: str) -> tuple[str, float]:
    name, equals, factor = text.partition("=")
    try:
        if equals:
            return name, float(factor)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is no factor; write for example lr=100")


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What is trained, from what, into which folder."""

    heading: ClassVar[str] = "Sweep"

    output: str = option(flags=("-o", "--output"), metavar="RUNS", help="Folder of the sweep.")
    task: str | None = option(
        None, metavar="TASK", help="Data and metric: handwriting, a task.yaml, or file.py:name."
    )
    base: str | None = option(
        None, metavar="CKPT", help="Where all runs start; handwriting makes its own."
    )
    scale: tuple[tuple[str, float], ...] = option(
        (), metavar="NAME=FACTOR", parse=_factor, many=tuple,
        help="Multiply a law, such as lr=100.",
    )  # fmt: skip
    cache: str | None = option(None, metavar="DIR", help="Journal of scores; default: the user's.")


def sweep(inputs: SweepInputs, options: SweepOptions, workers: WorkerOptions, show: Show) -> None:
    """Fine-tune ingredients from one base, resumably.

    Hyper-parameters are drawn from a space. Called again, a killed sweep continues to the same
    checkpoints, and a larger --runs adds to what is there. A run that fails is kept with its reason
    and does not stop the others.

    \b
    stockpot sweep --task handwriting -o RUNS --workers 2
    stockpot sweep --task my.py:task --base base/ -o RUNS --space image --scale lr=10 --runs 72
    stockpot sweep --task my.py:task -o RUNS --space s.yaml --train "python t.py {lr} {out}"
    stockpot greedy RUNS --task handwriting -o soup.safetensors
    """
    from stockpot.errors import TrainingError
    from stockpot.io.paths import cache_dir
    from stockpot.tasks.lookup import place_base, resolve
    from stockpot.train.sweep.named import resolve_space
    from stockpot.train.sweep.run import run_sweep

    task, out, start = inputs.task, inputs.output, inputs.base
    with progress_bar() as progress:
        if start is None and task is not None:
            start = place_base(task, out, progress=progress)
        if task is not None and not (Path(out) / "sweep.json").exists():
            _check(task, None if options.train is not None else start)
        space = resolve_space(options.space).scaled(dict(inputs.scale))
        result = run_sweep(
            None if task is None else functools.partial(resolve, task),
            start,
            replace(options, space=space),
            out=out,
            workers=workers,
            cache=cache_dir() if inputs.cache is None else inputs.cache,
            progress=progress,
        )
    _note_failures(result)
    if not result.paths:
        raise TrainingError(f"all {len(result.runs)} runs failed; their records are in {out}")
    show.emit(result.to_json(), _sweep_text(result))


def _check(task: str, start: str | None) -> None:
    """Look at a task of the user's before the first run; the others are checked where loaded."""
    from stockpot import formats as checkpoint
    from stockpot.tasks.checks import check_ready
    from stockpot.tasks.lookup import in_python_file, resolve

    if in_python_file(task):
        check_ready(resolve(task), None if start is None else checkpoint.open(start))


def _note_failures(result: SweepResult) -> None:
    for run in result.runs:
        if run.error is not None:
            reason = run.error["message"].splitlines()[:1]
            note(f"{run.name} failed: {run.error['type']}: {''.join(reason)} (see {run.name}.json)")


def _sweep_text(result: SweepResult) -> str:
    done = [run for run in result.runs if run.done]
    names = list(done[0].scores or {})
    rows = [[run.name, *(_percent((run.scores or {}).get(name)) for name in names)] for run in done]
    return table(["run", *names], rows)


def _percent(score: Any) -> str:
    return "" if score is None else f"{score['value']:.3f}"


def _beside(output: str, what: str) -> str:
    """The folder of long work that ends in `output`."""
    path = Path(output)
    return str(path.with_name(f"{short_name(path.name)}-{what}"))


def _training_device(running: Running) -> str | None:
    """The device that was asked for; None for the best one."""
    return None if running.device in ("auto", "accelerate") else running.device


@dataclass(frozen=True, kw_only=True)
class Dense(TaskScores):
    """What to make sparse and to score it with, and where the candidates are kept."""

    heading: ClassVar[str] = "Model and task"

    checkpoint: str = option(
        positional=True, metavar="CKPT", help="The dense model, fine-tuned or a soup."
    )
    work: str | None = option(
        None, metavar="DIR", help="Folder of the candidates; default: beside the output."
    )

    def folder(self, output: str) -> str:
        """Where the record finds the candidates."""
        return self.work or _beside(output, "phases")


def sparse(
    dense: Dense,
    options: SparseSoup,
    workers: WorkerOptions,
    running: Running,
    output: Output,
    show: Show,
) -> None:
    """Make a dense model sparse (sparse model soup).

    Each phase prunes the model, retrains copies of it that share the zeros, and averages them: the
    zeros stay, and accuracy comes back. Retraining needs the task's training data. A killed command
    continues where it was; the last candidates are kept in the work folder.

    \b
    stockpot sparse dense.safetensors --task handwriting --sparsity 0.9 -o sparse.safetensors
    stockpot sparse runs/run-03.safetensors --task my.py:task --sparsity 0.98 --schedule allr
        --candidates 4 --merge greedy --workers 4 --baselines -o sparse.safetensors
    stockpot sparse bert/ --task task.yaml --sparsity 0.5 --selector 2:4 --phases 1 -o sparse/
    stockpot sparse base.safetensors --task my.py:task --sparsity 0.9 --during gmp --phases 1
        --original-epochs 30 --lr-max 1e-3 -o sparse.safetensors
    """
    from stockpot.formats.opening import open as open_checkpoint
    from stockpot.tasks.lookup import resolve

    if output.config_from is None and Path(dense.checkpoint).is_dir():
        output = replace(output, config_from=dense.checkpoint)
    output.check()
    output.check_room(open_checkpoint(dense.checkpoint))
    with running.evaluator(dense) as evaluator, progress_bar() as progress:
        result = options.run(
            dense.checkpoint,
            functools.partial(resolve, dense.task),
            evaluator=evaluator,
            choose_on=dense.choose_on,
            folder=dense.folder(output.output),
            workers=workers,
            device=_training_device(running),
            progress=progress,
            force=output.force,
        )
    data, text = output.save(result.soup)
    show.emit({**result.to_json(), **data}, f"{_sparse_text(result)}\n\n{text}")


@dataclass(frozen=True, kw_only=True)
class Zoo(TaskScores):
    """The models and the task, and where the run is kept."""

    heading: ClassVar[str] = "Models and task"

    checkpoints: tuple[str, ...] = option(
        positional=True, metavar="CKPT...", help="Two models or more, of one architecture."
    )
    work: str | None = option(
        None, metavar="DIR", help="Folder of the run; default: beside the output."
    )

    def folder(self, output: str) -> str:
        """Where the record finds the folded model."""
        return self.work or _beside(output, "zoo")


def zoo(models: Zoo, options: ZooTuning, running: Running, output: Output, show: Show) -> None:
    """Adapt models of other pretrainings to a task, folded into one.

    Zoo-Tuning, for models that share no start and so cannot be averaged. Every layer becomes a
    gated sum of theirs, all of it is trained on the task, and what comes out is one plain model.
    Heads of other tasks are left out, and a new one is drawn from --train-seed. A killed command
    continues.

    \b
    stockpot zoo a.pt b.pt c.pt --task my_task.py:task --epochs 20 -o adapted.safetensors
    """
    from stockpot.tasks.lookup import resolve

    output.check()
    with running.evaluator(models) as evaluator, progress_bar() as progress:
        result = options.run(
            models.checkpoints,
            resolve(models.task),
            folder=models.folder(output.output),
            evaluator=evaluator,
            device=_training_device(running),
            progress=progress,
            force=output.force,
        )
    data, text = output.save(result.soup)
    show.emit({**result.to_json(), **data}, f"{_zoo_text(result)}\n\n{text}")


def _zoo_text(result: ZooResult) -> str:
    from stockpot.evaluate.compare import scores_to_json

    parts = [
        score_table({"folded": scores_to_json(result.soup.scores)}),
        table(
            ["layer", "gates"],
            [[name, "  ".join(f"{share:.2f}" for share in shares)]
             for name, shares in result.gates.items()],
        ),
    ]  # fmt: skip
    if result.fresh:
        parts.append(f"drawn from the seed, for no model has them: {', '.join(result.fresh)}")
    return "\n\n".join(parts)


def _sparse_text(result: SparseResult) -> str:
    from stockpot.evaluate.compare import scores_to_json

    rows: dict[str, Any] = {row.name: scores_to_json(row.scores) for row in result.soup.baselines}
    cells = {"dense": ["0", ""], "best-candidate": [f"{result.sparsity:.4f}", ""]}
    for phase in result.phases:
        name = f"soup of phase {phase.phase}"
        rows[name] = phase.scores
        kept: Any = phase.soup["selected"]
        cells[name] = [f"{phase.sparsity:.4f}", f"{len(kept)} of {len(phase.candidates)}"]
    parts = [
        result.soup.headline,
        score_table(rows, extra=["sparsity", "averaged"], cells=cells),
    ]
    if result.baselines:
        found = result.baselines
        costs = {name: [str(row.epochs), str(row.models)] for name, row in found.items()}
        scores: Mapping[str, Any] = {name: row.scores for name, row in found.items()}
        parts.append(score_table(scores, extra=["epochs", "models"], cells=costs))
    facts = [
        ["sparsity (prunable weights)", f"{result.sparsity:.6f}"],
        ["sparsity (all parameters)", f"{result.sparsity_of_all:.6f}"],
        ["non-zero parameters", f"{result.nonzero_parameters} of {result.parameters}"],
        ["epochs of retraining", f"{result.epochs['in_all']}, {result.epochs['in_a_row']} "
         "of them one after the other"],
        *_measures(result),
    ]  # fmt: skip
    return "\n\n".join([*parts, table(["result", ""], facts)])


def _measures(result: SparseResult) -> list[list[str]]:
    """FLOPs, and by split the calibration and the worst class."""
    cost = result.cost
    rows = [
        [
            "FLOPs of a prediction, if no zero took any",
            f"{cost.flops:.0f} of {cost.dense_flops} ({cost.speed_up:.1f} times fewer)",
        ]
    ]
    for split, found in result.quality.items():
        rows.append([f"calibration error (ECE) on {split}", f"{found.ece:.4f}"])
        worst = f"{found.worst_class_accuracy:.3f} (class {found.worst_class})"
        rows.append([f"worst class on {split}", worst])
    return rows
