"""Prune once, retrain several copies that share the mask, average, repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.splits import dataset_fingerprint
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients, Source
from stockpot.mixing.mask import Mask
from stockpot.recipes.gain import measure_gain
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.result import RecordedDetails, ScoredModel
from stockpot.recipes.simple import Uniform
from stockpot.recipes.soup import Soup, as_scored
from stockpot.train.config import TrainConfig
from stockpot.train.pruning import DynamicPruning, GradualPruning, Pruning
from stockpot.train.schedule import NEEDS_ORIGINAL
from stockpot.train.sparse import jobs as _jobs
from stockpot.train.sparse.baselines import Baselines
from stockpot.train.sparse.cost import task_cost
from stockpot.train.sparse.jobs import Plan, Retraining
from stockpot.train.sparse.options import SparseCandidate, SparseOptions, SparsePhase, SparseResult
from stockpot.train.sparse.prunable import find_groups, prunable_names
from stockpot.train.sparse.selectors import (
    Selector,
    SemiStructured,
    parse_selector,
    phase_sparsities,
)
from stockpot.train.sparse.surroundings import Surroundings


def run_pipeline(
    recipe: SparseOptions, start: Source, around: Surroundings, *, force: bool, keep_all: bool
) -> SparseResult:
    """See `SparseOptions.run`."""
    [dense] = Ingredients([start])
    return _Pipeline(recipe, dense, around).run(force=force, keep_all=keep_all)


@dataclass(frozen=True)
class _Phase:
    """A phase that is done: what the next one starts from, what was measured, and its soup."""

    start: Checkpoint
    mask: Mask
    measured: SparsePhase | None = None
    soup: Soup | None = None


class _Pipeline:
    """One run: everything that its steps share."""

    def __init__(self, recipe: SparseOptions, dense: Checkpoint, around: Surroundings) -> None:
        self.recipe, self.dense, self.around = recipe, dense, around
        self.folder = around.folder.path

    def run(self, *, force: bool, keep_all: bool) -> SparseResult:
        recipe = self.recipe
        original, notes = self._original()
        model = self.around.evaluator.task.build()
        names = prunable_names(model, include=recipe.include, exclude=recipe.exclude)
        selector = parse_selector(
            recipe.selector, seed=recipe.seed, groups=find_groups(model, names)
        )
        plan = Plan(
            names, selector, self._sparsities(selector), self._schedule, original, recipe.epochs
        )
        self.around.folder.claim(self._identity(original), force=force)
        start = self._trained(plan, model)
        phase, measured = _Phase(start, Mask({})), list[SparsePhase]()
        for number in range(len(plan.sparsities)):
            phase = self._phase(plan, number, phase.start, phase.mask if number else None)
            assert phase.measured is not None
            measured.append(phase.measured)
        assert phase.soup is not None
        result = self._result(phase.soup, tuple(measured), phase.start, plan)
        if recipe.baselines:
            table = Baselines(self.around, plan, recipe).table(start, phase.soup)
            result = dataclasses.replace(result, baselines=table)
        if not keep_all:
            self._clear(len(plan.sparsities))
        options = recipe.to_json()
        soup = dataclasses.replace(
            self._compared(phase.soup, start, measured[-1].sparsity),
            recipe=str(options.pop("name")),
            options=options,
            details=RecordedDetails(data={**phase.soup.details.to_json(), **result.details()}),
            notes=(
                *phase.soup.notes,
                *([] if phase.soup.gain is None else [f"averaging alone: {phase.soup.gain}"]),
                *notes,
                *_sparsity_notes(measured[-1]),
            ),
        )
        return dataclasses.replace(result, soup=soup)

    def _compared(self, soup: Soup, dense: Checkpoint, sparsity: float) -> Soup:
        """The soup held against the dense model that the phases start from."""
        if soup.gain is None:
            return soup
        path = self.dense.path if self.recipe.during is None else dense.path
        gain = measure_gain(self.around.evaluator, as_scored(soup.mixture), dense, path=path)
        rows = [
            ScoredModel(
                name="dense", path=path, scores=self.around.evaluator.scores(dense), role="base"
            ),
            *(
                dataclasses.replace(row, name="best-candidate")
                for row in soup.baselines
                if row.name == "best-single"
            ),
        ]
        advice = f"{100 * sparsity:.1f} % of the prunable weights are zero"
        return dataclasses.replace(
            soup, gain=dataclasses.replace(gain, advice=advice), baselines=tuple(rows)
        )

    @property
    def _schedule(self) -> str:
        """Candidates of GMP and DPF go on with the schedule of the run whose end they are."""
        return "lrw" if self.recipe.during in ("gmp", "dpf") else self.recipe.schedule

    def _sparsities(self, selector: Selector) -> tuple[float, ...]:
        if isinstance(selector, SemiStructured):
            return (selector.sparsity,) * self.recipe.n_phases
        return phase_sparsities(self.recipe.sparsity, self.recipe.n_phases)

    def _original(self) -> tuple[TrainConfig, list[str]]:
        recipe, task = self.recipe, self.around.evaluator.task
        given: dict[str, Any] = {
            "lr": recipe.lr_max, "epochs": recipe.original_epochs,
            "weight_decay": recipe.weight_decay, "batch_size": recipe.batch_size,
        }  # fmt: skip
        if recipe.original is not None:
            own = {name: value for name, value in given.items() if value is not None}
            return dataclasses.replace(recipe.original, **own), []
        n_examples = len(task.train_set)  # type: ignore[arg-type]
        config, known, notes = _jobs.original_config(
            self.dense, given, n_examples=n_examples, batch_size=task.batch_size
        )
        if recipe.during is not None:
            _jobs.require_original(self.dense, known, why=recipe.during)
        if recipe.schedule in NEEDS_ORIGINAL:
            _jobs.require_original(self.dense, known, why=f"schedule {recipe.schedule}")
        return config, notes

    def _identity(self, original: TrainConfig) -> dict[str, JSON]:
        evaluator = self.around.evaluator
        task = evaluator.task
        assert task.train_set is not None
        return {
            "start": self.dense.fingerprint,
            "recipe": self.recipe.options(),
            "original": original.as_dict(),
            "threads": self.around.jobs.workers.threads,
            "task": task.version,
            "data": dataset_fingerprint(task.train_set).value,
            "choose_on": evaluator.fingerprint(self.around.split),
        }

    def _trained(self, plan: Plan, model: nn.Module) -> Checkpoint:
        """Where the phases start: the checkpoint, or with `during` what comes of training it."""
        path = _jobs.as_file(self.dense, model, self.folder)
        if self.recipe.during is None:
            return open_checkpoint(path)
        out = self.folder / f"trained{_jobs.suffix_of(open_checkpoint(path))}"
        config, pruning = self._training(plan)
        seed = _jobs.own_seeds(self.recipe.seed, 9, 1)[0]
        job = Retraining(path, str(out), pruning, config, seed, self.around.jobs.device)
        self.around.jobs.run({"training": job}, self.around.progress, "trainings")
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
        path, record = place / f"soup{_jobs.suffix_of(start)}", f"phase-{number + 1}/phase.json"
        done = self.around.folder.read(record)
        last = number + 1 == len(plan.sparsities)
        if done is not None and path.exists() and not last:
            return _Phase(open_checkpoint(path), pruned.mask, SparsePhase.from_json(done))
        place.mkdir(parents=True, exist_ok=True)
        config = plan.config(pruned)
        retrainings = self._candidates(place, start, pruned.mask, config, number)
        self.around.jobs.run(
            retrainings, self.around.progress, f"retrainings of phase {number + 1}"
        )
        models = [open_checkpoint(job.out) for job in retrainings.values()]
        _jobs.require_mask(pruned.mask, models)
        soup = self._merged(models)
        soup.save(path, force=True)
        saved = open_checkpoint(path)
        _jobs.require_mask(pruned.mask, [saved])
        distances, angles = _jobs.geometry(start, pruned.mask, models)
        measured = SparsePhase(
            phase=number + 1,
            **_counts(pruned.mask, saved, plan.names),
            target=plan.sparsities[number],
            rate=pruned.rate,
            change=pruned.change,
            candidates=tuple(
                SparseCandidate(
                    path=job.out, seed=job.seed, lr=job.config.lr, epochs=job.config.epochs,
                    weight_decay=job.config.weight_decay, distance=distance,
                    scores=scores_to_json(self.around.scores(model)),
                )
                for job, model, distance in zip(
                    retrainings.values(), models, distances, strict=True
                )
            ),
            angles=tuple(angles),
            soup={
                "path": str(path), "selected": list(soup.selected),
                "coefficients": dict(soup.coefficients),
            },
            scores=scores_to_json(soup.scores),
        )  # fmt: skip
        self.around.folder.write(record, measured.to_json())
        return _Phase(saved, pruned.mask, measured, soup)

    def _candidates(
        self, place: Path, start: Checkpoint, mask: Mask, config: TrainConfig, number: int
    ) -> dict[str, Retraining]:
        m = self.recipe.n_candidates
        seeds = _jobs.own_seeds(self.recipe.seed, number, m)
        varied = _jobs.variations(self.recipe.vary, config, m, seeds=seeds)
        return {
            f"candidate-{i}": Retraining(
                str(Path(start.path).absolute()),
                str((place / f"candidate-{i}{_jobs.suffix_of(start)}").absolute()),
                mask,
                one,
                seed,
                self.around.jobs.device,
            )
            for i, (one, seed) in enumerate(varied)
        }

    def _merged(self, models: list[Checkpoint]) -> Soup:
        recipe = Greedy(explain=False) if self.recipe.merge == "greedy" else Uniform()
        evaluator = self.around.evaluator
        return recipe.cook(
            Ingredients(models), evaluator.task, evaluator=evaluator,
            choose_on=self.around.split, report=self.around.report,
        )  # fmt: skip

    def _result(
        self, soup: Soup, phases: tuple[SparsePhase, ...], saved: Checkpoint, plan: Plan
    ) -> SparseResult:
        cost = task_cost(self.around.evaluator.task, saved)
        in_a_row = plan.epochs * len(plan.sparsities)
        return SparseResult(
            soup=soup,
            phases=phases,
            sparsity_of_all=1 - cost.n_nonzero / cost.n_parameters,
            nonzero_parameters=cost.n_nonzero,
            parameters=cost.n_parameters,
            prunable=plan.names,
            epochs={
                "each": plan.epochs, "in_a_row": in_a_row,
                "in_all": in_a_row * self.recipe.n_candidates,
            },
            cost=cost,
            quality=self.around.quality(soup.mixture),
            baselines={},
        )  # fmt: skip

    def _clear(self, n_phases: int) -> None:
        """Drop the candidates of all phases but the last; the soups stay, to resume from."""
        for number in range(1, n_phases):
            for path in (self.folder / f"phase-{number}").glob("candidate-*.*"):
                path.unlink()


def _counts(mask: Mask, saved: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
    """Zeros that are really there, over all prunable weights, those of no pattern included."""
    found = Mask.of_nonzero({name: saved.read(name) for name in names})
    return {
        "sparsity": found.sparsity,
        "zeros": found.n_zeros,
        "weights": found.n_weights,
        "mask": mask.fingerprint,
        "emptied": tuple(name for name in mask if not mask.kept(name).any()),
    }


def _sparsity_notes(last: SparsePhase) -> list[str]:
    """What a person should know of where the zeros are."""
    notes = []
    if last.emptied:
        notes.append(
            f"every weight of {', '.join(last.emptied)} was pruned, so nothing passes "
            f"{'these layers' if len(last.emptied) > 1 else 'this layer'}: ask for less sparsity, "
            "leave them out (exclude=…, --exclude), or prune every tensor alike (selector uniform)"
        )
    if last.target - last.sparsity > 0.001:
        notes.append(
            f"the sparsity is {last.sparsity:.4f} over the prunable weights: tensors that the "
            f"pattern does not fit stay dense, in the others it is {last.target:g}"
        )
    return notes
