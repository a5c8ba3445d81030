"""Sparse soups: prune once, retrain several copies that share the mask, average, repeat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import RecipeError
from stockpot.evaluate.evaluator import Evaluator, scores_to_json
from stockpot.evaluate.task_fingerprint import dataset_fingerprint
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.io import atomic as _io
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.mixing.mask import Mask
from stockpot.mixing.mask_values import as_array
from stockpot.recipes.base import Kitchen, prepare, recipe_to_json
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.soup import Soup
from stockpot.recipes.uniform import Uniform
from stockpot.tensors.spec import DType
from stockpot.train.config import TrainConfig
from stockpot.train.pruning import DynamicPruning, GradualPruning, Pruning
from stockpot.train.retraining import NEEDS_ORIGINAL, SCHEDULES
from stockpot.train.sparse import phases as _phases
from stockpot.train.sparse.baselines import Baselines
from stockpot.train.sparse.groups import find_groups
from stockpot.train.sparse.phases import Crew, Plan, Retraining
from stockpot.train.sparse.prunable import prunable_names
from stockpot.train.sparse.rates import phase_sparsities
from stockpot.train.sparse.selectors import Selector, SemiStructured, parse_selector

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task


VARY = ("seed", "weight-decay", "retrain-length", "lr")
"""What candidates of a phase differ in."""

DURING = ("gmp", "dpf", "bimp")
"""Ways to prune in the course of training, before or between soups."""


@dataclass(frozen=True)
class SparseSoup:
    """Make a dense model sparse, in phases of prune, retrain m copies, average.

    All copies of a phase start from the same pruned weights, so their average is as sparse as they
    are. With one candidate this is iterative magnitude pruning (IMP), with one phase it is one-shot
    pruning. The data that retrain are the task's training set; held-out data choose only where
    `merge` is `"greedy"`.

    With `during` the checkpoint is a start that is trained first, in a budget of `original_epochs`:
    `"gmp"` and `"dpf"` prune while they train and leave the last `epochs` epochs to the candidates,
    which go on with the same schedule under the mask that was found; `"bimp"` trains densely and
    leaves `epochs` epochs to each phase.

    Attributes:
        sparsity: of the result, over all prunable weights.
        n_phases: prune-retrain-average cycles; each prunes the same share of what remains.
        n_candidates: copies that are retrained in each phase.
        vary: what they differ in: one of `VARY`.
        merge: `"uniform"` or `"greedy"`.
        selector: what is pruned; see `parse_selector`.
        include: patterns of further prunable parameters; see `prunable_names`.
        exclude: patterns of parameters that stay dense.
        schedule: learning rates of retraining; see `retrain_config`.
        epochs: of each retraining.
        lr_max: largest learning rate of the run that made the checkpoint; None for its record's.
        original_epochs: length of that run (with `during`: of the run to come).
        weight_decay: of retraining; None for the record's.
        batch_size: of retraining; None for the record's.
        original: the whole configuration of that run, in place of its record.
        during: one of `DURING`, or None.
        baselines: also make and score what a soup has to be held against.
        seed: of the retrainings, and of random masks.

    Reference: Zimmer, Spiegel & Pokutta 2023, arXiv 2306.16788, Algorithm 1.
    """

    sparsity: float
    n_phases: int = 3
    n_candidates: int = 3
    vary: str = "seed"
    merge: str = "uniform"
    selector: str = "magnitude"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    schedule: str = "llr"
    epochs: int = 5
    lr_max: float | None = None
    original_epochs: int | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    original: TrainConfig | None = None
    during: str | None = None
    baselines: bool = False
    seed: int = 0

    name = "sparse"

    def __post_init__(self) -> None:
        phase_sparsities(self.sparsity, self.n_phases)
        choices = {
            "vary": VARY, "merge": ("uniform", "greedy"), "schedule": SCHEDULES,
            "during": (None, *DURING),
        }  # fmt: skip
        problems = [
            f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        problems += [
            f"{name} is {getattr(self, name)}, expected at least 1"
            for name in ("n_candidates", "epochs")
            if getattr(self, name) < 1
        ]
        if self.during in ("gmp", "dpf") and self.n_phases != 1:
            problems.append(
                f"{self.during} has one phase, whose mask it finds while it trains, and n_phases "
                f"is {self.n_phases}"
            )
        selector = parse_selector(self.selector)
        if isinstance(selector, SemiStructured) and abs(selector.sparsity - self.sparsity) > 1e-9:
            problems.append(
                f"selector {self.selector} makes a sparsity of {selector.sparsity:g}, and sparsity "
                f"is {self.sparsity:g}"
            )
        if problems:
            raise RecipeError(
                "this sparse soup cannot be made:\n" + "\n".join(f"  {p}" for p in problems)
            )

    def cook(
        self,
        ingredients: Ingredients | Iterable[Source],
        task: Task | None = None,
        *,
        base: Source | None = None,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        on_mismatch: OnMismatch = "error",
        dtype: DType | str | None = None,
        report: bool = True,
        folder: StrPath | None = None,
        make_task: Callable[[], Task] | None = None,
        n_workers: int | None = 1,
        threads: int = 1,
        ray: str | None = None,
        gpus_per_job: float = 0,
        device: str | None = None,
        progress: Progress = no_progress,
        force: bool = False,
        keep_all: bool = False,
    ) -> Soup:
        """Make the sparse soup of one dense checkpoint; see `Recipe.cook` for the rest.

        A call that was killed goes on where it was, retraining by retraining, to the same bytes;
        the number of workers changes none.

        Args:
            ingredients: one checkpoint.
            task: needs a `train_set`.
            base: not used.
            evaluator: scores.
            choose_on: the held-out split that decides.
            on_mismatch: not used.
            dtype: has to be None: retraining keeps the checkpoint's types.
            report: score on all splits.
            folder: where candidates are kept; the soup is an average of those of the last phase.
            make_task: makes the task in each worker, for tasks that cannot be pickled.
            n_workers: retrainings side by side; None for as many as fit.
            threads: of each worker; results depend on it.
            ray: address of a Ray cluster to run on.
            gpus_per_job: of the Ray cluster.
            device: that trains; None for the best one.
            progress: called in retrainings.
            force: start over where `folder` holds a run with other settings.
            keep_all: keep the candidates of all phases, and not of the last one only.

        Raises:
            RecipeError: there is not exactly one checkpoint, no folder, or nothing to train on.
            MaskMismatchError: retrained models do not share their mask.
        """
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        if len(kitchen.ingredients) != 1:
            raise RecipeError(
                f"{len(kitchen.ingredients)} checkpoints were given, and a sparse soup starts from "
                "one dense model; average them first, or choose one"
            )
        if folder is None or dtype is not None:
            missing = "folder=… is needed" if folder is None else "dtype cannot be changed"
            raise RecipeError(f"{missing}: candidates are kept in it, in the checkpoint's types")
        judge, _ = kitchen.scoring(self.name)
        crew = Crew(
            judge.task, make_task, n_workers, threads, ray, gpus_per_job,
            None if judge.journal.path is None else str(Path(judge.journal.path).parent),
            judge.precision, device, judge.seed,
        )  # fmt: skip
        cooking = _Cooking(self, kitchen, crew, Path(folder), progress)
        return cooking.run(force=force, keep_all=keep_all)

    def options(self) -> dict[str, JSON]:
        """Everything that the checkpoints depend on."""
        return {k: v for k, v in recipe_to_json(self).items() if k != "baselines"}


@dataclass(frozen=True)
class _Phase:
    """A phase that is done: what it starts the next one with, and what it is told as."""

    start: Checkpoint
    mask: Mask
    told: dict[str, JSON]
    soup: Soup | None = None


class _Cooking:
    """One call of `cook`: everything that its steps share."""

    def __init__(
        self, recipe: SparseSoup, kitchen: Kitchen, crew: Crew, folder: Path, progress: Progress
    ) -> None:
        self.recipe, self.kitchen, self.crew = recipe, kitchen, crew
        self.folder, self.progress = folder, progress
        self.evaluator, self.split = kitchen.scoring(recipe.name)
        self.dense = kitchen.ingredients[0]
        if self.evaluator.task.train_set is None:
            raise RecipeError("the task has no train_set, so nothing can be retrained: give it one")

    def run(self, *, force: bool, keep_all: bool) -> Soup:
        recipe = self.recipe
        original, notes = self._original()
        model = self.evaluator.task.build()
        names = prunable_names(model, include=recipe.include, exclude=recipe.exclude)
        selector = parse_selector(
            recipe.selector, seed=recipe.seed, groups=find_groups(model, names)
        )
        plan = Plan(
            names, selector, self._sparsities(selector), self._schedule, original, recipe.epochs
        )
        _phases.refuse_other_run(self.folder, self._identity(original), force=force)
        start = self._trained(plan)
        phase = _Phase(start, Mask({}), {})
        told: list[JSON] = []
        for number in range(len(plan.sparsities)):
            phase = self._phase(plan, number, phase.start, phase.mask if number else None)
            told.append(phase.told)
        assert phase.soup is not None
        extra = {"phases": told, **self._summary(phase, plan)}
        if recipe.baselines:
            baselines = Baselines(self.kitchen, self.crew, plan, self.folder, self.progress)
            extra["baselines"] = baselines.table(start, phase.soup, recipe)
        if not keep_all:
            self._clear(len(plan.sparsities))
        return dataclasses.replace(
            phase.soup, recipe=recipe, extra={**phase.soup.extra, **extra},
            notes=(*phase.soup.notes, *notes),
        )  # fmt: skip

    @property
    def _schedule(self) -> str:
        """Candidates of GMP and DPF go on with the schedule of the run whose end they are."""
        return "lrw" if self.recipe.during in ("gmp", "dpf") else self.recipe.schedule

    def _sparsities(self, selector: Selector) -> tuple[float, ...]:
        if isinstance(selector, SemiStructured):
            return (selector.sparsity,) * self.recipe.n_phases
        return phase_sparsities(self.recipe.sparsity, self.recipe.n_phases)

    def _original(self) -> tuple[TrainConfig, list[str]]:
        recipe, task = self.recipe, self.evaluator.task
        given: dict[str, Any] = {
            "lr": recipe.lr_max, "epochs": recipe.original_epochs,
            "weight_decay": recipe.weight_decay, "batch_size": recipe.batch_size,
        }  # fmt: skip
        if recipe.original is not None:
            told = {name: value for name, value in given.items() if value is not None}
            return dataclasses.replace(recipe.original, **told), []
        n_examples = len(task.train_set)  # type: ignore[arg-type]
        config, known, notes = _phases.original_config(
            self.dense, given, n_examples=n_examples, batch_size=task.batch_size
        )
        if recipe.during is not None:
            _phases.require_original(self.dense, known, why=recipe.during)
        if recipe.schedule in NEEDS_ORIGINAL:
            _phases.require_original(self.dense, known, why=f"schedule {recipe.schedule}")
        return config, notes

    def _identity(self, original: TrainConfig) -> dict[str, JSON]:
        task = self.evaluator.task
        assert task.train_set is not None
        identity = {
            "start": self.dense.fingerprint,
            "recipe": self.recipe.options(),
            "original": original.as_dict(),
            "threads": self.crew.threads,
            "task": task.version,
            "data": dataset_fingerprint(task.train_set).value,
            "choose_on": self.evaluator.fingerprint(self.split),
        }
        plain: dict[str, JSON] = json.loads(_io.dump_json(identity))
        return plain

    def _trained(self, plan: Plan) -> Checkpoint:
        """Where the phases start: the checkpoint, or with `during` what comes of training it."""
        path = _phases.as_file(self.dense, self.folder)
        if self.recipe.during is None:
            return open_checkpoint(path)
        out = self.folder / "trained.safetensors"
        config, pruning = self._training(plan)
        seed = _phases.own_seeds(self.recipe.seed, 9, 1)[0]
        job = Retraining(path, str(out), pruning, config, seed, self.crew.device)
        self.crew.work({"training": job}, self.progress, "trainings")
        return open_checkpoint(out)

    def _training(self, plan: Plan) -> tuple[TrainConfig, Pruning | None]:
        recipe, total = self.recipe, plan.original.epochs
        after = recipe.epochs * recipe.n_phases
        if after >= total:
            raise RecipeError(
                f"{recipe.during} has {total} epochs (original_epochs), and {after} of them are "
                f"for the candidates of {recipe.n_phases} phases: leave some to train with"
            )
        config = dataclasses.replace(
            plan.original, epochs=total - after, score_every=total, keep="last", max_steps=None,
            probe_epochs=0, ema_decays=(), swa_start_epoch=None, swa_lr=None, swa_cycle_epochs=0,
        )  # fmt: skip
        if recipe.during == "bimp":
            return config, None
        kind = GradualPruning if recipe.during == "gmp" else DynamicPruning
        pruning = kind(
            sparsity=recipe.sparsity, until=1.0, selector=plan.selector,
            include=recipe.include, exclude=recipe.exclude,
        )  # fmt: skip
        return dataclasses.replace(config, epochs_after=after), pruning

    def _phase(self, plan: Plan, number: int, start: Checkpoint, previous: Mask | None) -> _Phase:
        pruned = plan.prune(start, number, previous)
        place = self.folder / f"phase-{number + 1}"
        done, path = place / "phase.json", place / "soup.safetensors"
        last = number + 1 == len(plan.sparsities)
        if done.exists() and path.exists() and not last:
            return _Phase(open_checkpoint(path), pruned.mask, json.loads(done.read_bytes()))
        place.mkdir(parents=True, exist_ok=True)
        config = plan.config(pruned)
        jobs = self._candidates(place, start, pruned.mask, config, number)
        self.crew.work(jobs, self.progress, f"retrainings of phase {number + 1}")
        models = [open_checkpoint(job.out) for job in jobs.values()]
        _phases.require_mask(pruned.mask, models)
        soup = self._merged(models)
        soup.save(path, force=True)
        saved = open_checkpoint(path)
        _phases.require_mask(pruned.mask, [saved])
        distances, angles = _phases.geometry(start, pruned.mask, models)
        told: dict[str, JSON] = {
            "phase": number + 1,
            **_counts(pruned.mask, saved),
            "target": plan.sparsities[number],
            "rate": pruned.rate,
            "change": pruned.change,
            "candidates": [
                {
                    "path": job.out, "seed": job.seed, "lr": job.config.lr,
                    "epochs": job.config.epochs, "weight_decay": job.config.weight_decay,
                    "distance": distance, "scores": scores_to_json(self._scores(model)),
                }
                for job, model, distance in zip(jobs.values(), models, distances, strict=True)
            ],
            "angles": angles,
            "soup": {
                "path": str(path), "selected": list(soup.selected),
                "coefficients": dict(soup.coefficients),
            },
            "scores": scores_to_json(soup.scores),
        }  # fmt: skip
        _io.write_json(done, told)
        return _Phase(saved, pruned.mask, told, soup)

    def _candidates(
        self, place: Path, start: Checkpoint, mask: Mask, config: TrainConfig, number: int
    ) -> dict[str, Retraining]:
        m = self.recipe.n_candidates
        seeds = _phases.own_seeds(self.recipe.seed, number, m)
        varied = _phases.variations(self.recipe.vary, config, m, seeds=seeds)
        return {
            f"candidate-{i}": Retraining(
                str(Path(start.path).absolute()),
                str((place / f"candidate-{i}.safetensors").absolute()),
                mask,
                one,
                seed,
                self.crew.device,
            )
            for i, (one, seed) in enumerate(varied)
        }

    def _merged(self, models: list[Checkpoint]) -> Soup:
        greedy = self.recipe.merge == "greedy"
        recipe = Greedy(explain=False) if greedy else Uniform()
        return recipe.cook(
            Ingredients(models), self.evaluator.task, evaluator=self.evaluator,
            choose_on=self.split, report=self.kitchen.report,
        )  # fmt: skip

    def _scores(self, model: Checkpoint) -> Mapping[str, Any]:
        return self.evaluator.scores(model, None if self.kitchen.report else [self.split])

    def _summary(self, phase: _Phase, plan: Plan) -> dict[str, JSON]:
        every = {n: as_array(phase.start.read(n)) for n in _floating(phase.start)}
        n_nonzero = sum(int((array != 0).sum()) for array in every.values())
        total = sum(array.size for array in every.values())
        m = self.recipe.n_candidates
        return {
            "sparsity": phase.told["sparsity"],
            "sparsity_of_all": 1 - n_nonzero / total,
            "nonzero_parameters": n_nonzero,
            "parameters": total,
            "prunable": list(plan.names),
            "epochs": {
                "each": plan.epochs, "in_a_row": plan.epochs * len(plan.sparsities),
                "in_all": plan.epochs * len(plan.sparsities) * m,
            },
        }  # fmt: skip

    def _clear(self, n_phases: int) -> None:
        """Candidates of all phases but the last have served; the soups stay, to resume from."""
        for number in range(1, n_phases):
            for path in (self.folder / f"phase-{number}").glob("candidate-*.safetensors"):
                path.unlink()


def _counts(mask: Mask, saved: Checkpoint) -> dict[str, JSON]:
    """Zeros that are really there, over the prunable weights that the mask covers."""
    found = Mask.of_nonzero({name: saved.read(name) for name in mask})
    return {
        "sparsity": found.sparsity,
        "zeros": found.n_zeros,
        "weights": found.n_weights,
        "mask": mask.fingerprint,
    }


def _floating(model: Checkpoint) -> list[str]:
    tied = {name for group in model.tied for name in group[1:]}
    return [n for n, spec in model.items() if spec.dtype.mixable and n not in tied]
