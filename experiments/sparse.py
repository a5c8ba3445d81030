"""Sparse soups against everything they have to be held against: docs/results/sparse.md.

    python -m experiments.sparse handwriting --out ../sparse --jobs 2
    python -m experiments.sparse resnet --data DATA --out ../sparse --device cuda --jobs 12
    python -m experiments.sparse resnet --data DATA --out ../sparse --epochs 1 \
        --train-images 10000 --examples 2000

A study prunes one dense model per seed. `handwriting` goes to each of five sparsities in three
phases of three candidates; `resnet` (ResNet-20 on the JPEG copy of CIFAR-10) goes to 98 % and
reports all three phases, under each BatchNorm policy: the weights are the same, and so all models
of a table have statistics of one kind. Beside the soups (uniform and greedy) stand the best and the
mean candidate, the ensemble, IMP, IMP with as many epochs as all candidates together, and
IMP-RePrune; for handwriting also GMP, DPF and BIMP, each with a soup at its end and without. The
last line is a case of `resnet` for two cores.

Every piece is a file in `OUT/STUDY/parts`, so a call that was killed goes on. Held-out chooses;
test and shifts only report. Writes `OUT/STUDY.json` and `OUT/STUDY.md`. `--quick` tries everything
in a few steps and means nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import side_by_side, values_of, write_json
from experiments.sparse_study import STUDIES, Lab, quickly
from experiments.sparse_tables import markdown
from scipy import special

import stockpot
from experiments import cifar_resnet
from stockpot import Checkpoint, Evaluator, TaskEvaluator
from stockpot.analysis import expected_calibration_error
from stockpot.evaluate import Predictions
from stockpot.recipes import mean_logits
from stockpot.train import Magnitude, prunable_names


@dataclass(frozen=True)
class Piece:
    """One sparse soup, or chain of prunings: work of one process, kept as one file."""

    lab: Lab
    seed: int
    sparsity: float
    kind: str

    @property
    def name(self) -> str:
        return f"seed-{self.seed}-{self.sparsity:g}-{self.kind}"

    @property
    def folder(self) -> Path:
        return self.lab.place(self.seed) / f"{self.sparsity:g}-{self.kind}"

    @property
    def file(self) -> Path:
        return self.lab.folder / "parts" / f"{self.name}.json"

    @property
    def start(self) -> Path:
        during = self.kind in ("gmp", "dpf", "bimp")
        return self.lab.place(self.seed) / f"{'base' if during else 'dense'}.safetensors"

    @property
    def recipe(self) -> stockpot.SparseSoup:
        """IMP is a sparse soup of one candidate; `imp-long` has the epochs of all."""
        study = self.lab.study
        recipe = stockpot.SparseSoup(
            sparsity=self.sparsity, n_phases=study.n_phases, n_candidates=study.n_candidates,
            schedule=study.schedule, epochs=study.epochs, original=study.train, seed=self.seed,
        )  # fmt: skip
        if self.kind in ("uniform", "greedy"):
            return replace(recipe, merge=self.kind)
        if self.kind.startswith("vary-"):
            return replace(recipe, vary=self.kind.removeprefix("vary-"))
        if self.kind in ("gmp", "dpf", "bimp"):
            phases = study.n_phases if self.kind == "bimp" else 1
            return replace(
                recipe, during=self.kind, n_phases=phases, original_epochs=study.during_epochs
            )
        single = replace(recipe, n_candidates=1)
        if self.kind == "imp-long":
            return replace(single, epochs=study.epochs * study.n_candidates)
        # Chains of their own seeds: none of them is the soup's.
        return replace(single, seed=self.seed * 10 + 3 + int(self.kind.removeprefix("imp-")))

    @property
    def phases(self) -> list[tuple[int, float]]:
        if self.kind in ("gmp", "dpf"):
            return [(1, self.sparsity)]
        return self.lab.study.points(self.sparsity)


def pieces(lab: Lab, seeds: Sequence[int]) -> list[Piece]:
    """All that has to be made, the longest first."""
    study = lab.study
    chains = [f"imp-{i}" for i in range(study.n_candidates)]
    during = ["bimp", "gmp", "dpf"] if study.during_epochs else []
    greedy = ["greedy"] if study.greedy_chain else []
    kinds = ["uniform", *greedy, "imp-long", *during, *chains]
    return [Piece(lab, seed, s, kind) for kind in kinds for s in study.sparsities for seed in seeds]


def work(piece: Piece) -> None:
    """Make a piece and measure it at every phase that is reported."""
    if piece.file.exists():
        return
    started = time.perf_counter()
    torch.set_num_threads(1)
    judge, study = piece.lab.judge(piece.seed), piece.lab.study
    task = piece.lab.task(piece.seed)
    maker = TaskEvaluator(task, device=piece.lab.device, batchnorm="averaged")
    result = piece.recipe.run(
        piece.start, task, evaluator=maker, folder=piece.folder, report=False,
        device=piece.lab.device, keep_all=True,
    )  # fmt: skip
    rows = []
    for phase, sparsity in piece.phases:
        found = result.phases[phase - 1]
        assert found.zeros == round(sparsity * found.weights)
        models = [stockpot.open(candidate.path) for candidate in found.candidates]
        soup = stockpot.open(str(found.soup["path"]))
        wants_greedy = piece.kind == "uniform" and not study.greedy_chain
        under = {
            policy: measures(judge.with_batchnorm(policy), soup, models, greedy=wants_greedy)
            for policy in study.policies
        }
        rows.append({"phase": phase, "sparsity": sparsity, "kind": piece.kind,
                     "angles": list(found.angles), "under": under})  # fmt: skip
    write_json(
        piece.file,
        {"seed": piece.seed, "target": piece.sparsity, "rows": rows,
         "seconds": time.perf_counter() - started},
    )  # fmt: skip


def measures(
    judge: TaskEvaluator, soup: Checkpoint, models: Sequence[Checkpoint], *, greedy: bool
) -> dict[str, Any]:
    """What is measured of one phase under the policy of `judge`."""
    if len(models) == 1:
        return {"soup": measure(judge, soup)}
    told = {
        "soup": measure(judge, soup),
        "candidates": [measure(judge, model) for model in models],
        "ensemble": measure_outputs(judge, ensemble_of(judge, models)),
    }
    if greedy:
        chosen = stockpot.Greedy(explain=False).cook(
            stockpot.Ingredients(models), judge.task, evaluator=judge, report=False
        )
        told["greedy"] = measure(judge, chosen.mixture)
        told["selected"] = len(chosen.selected)
    return told


def ensemble_of(judge: Evaluator, models: Sequence[Any]) -> dict[str, Predictions]:
    return {
        split: mean_logits(judge, [judge.predictions(m, split) for m in models], split)
        for split in judge.task.splits
    }


def measure(judge: Evaluator, model: Any) -> dict[str, float]:
    """Scores by split and their shift average; ECE and worst class of test."""
    return measure_outputs(judge, {s: judge.predictions(model, s) for s in judge.task.splits})


def measure_outputs(judge: Evaluator, found: Mapping[str, Predictions]) -> dict[str, float]:
    scores = {name: score.value for name, score in judge.scores_of(found).items()}
    test = found["test"]
    targets = np.asarray(test.targets)
    probabilities = special.softmax(np.asarray(test.outputs, np.float64), axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    by_class = [float(right[targets == c].mean()) for c in np.unique(targets)]
    return {
        **scores,
        "ece": expected_calibration_error(confidence, right),
        "worst_class": min(by_class),
    }


@dataclass(frozen=True)
class Closing:
    """What needs all chains of a seed and sparsity: IMP-RePrune; and the dense model."""

    lab: Lab
    seed: int
    sparsity: float

    @property
    def file(self) -> Path:
        return self.lab.folder / "parts" / f"seed-{self.seed}-{self.sparsity:g}-closing.json"


def close(job: Closing) -> None:
    """Average the independent chains and prune the average back, at every reported phase."""
    if job.file.exists():
        return
    lab, study = job.lab, job.lab.study
    torch.set_num_threads(1)
    judge = lab.judge(job.seed)
    names = prunable_names(judge.task.build())
    rows = []
    for phase, sparsity in study.points(job.sparsity):
        chains = [Piece(lab, job.seed, job.sparsity, f"imp-{i}") for i in range(study.n_candidates)]
        paths = [chain.folder / f"phase-{phase}" / "soup.safetensors" for chain in chains]
        weights = [{name: m.read(name) for name in m} for m in map(stockpot.open, paths)]
        average = stockpot.Mixture(stockpot.Ingredients(weights))
        mask = Magnitude().select({name: average.read(name) for name in names}, sparsity)
        pruned = stockpot.Mixture(average.ingredients, mask=mask)
        under = {p: measure(judge.with_batchnorm(p), pruned) for p in study.policies}
        rows.append({"phase": phase, "sparsity": sparsity, "under": under})
    dense = stockpot.open(lab.place(job.seed) / "dense.safetensors")
    under = {p: measure(judge.with_batchnorm(p), dense) for p in study.policies}
    write_json(job.file, {"seed": job.seed, "target": job.sparsity, "rows": rows, "dense": under})


def run(lab: Lab, seeds: Sequence[int], *, n_jobs: int) -> None:
    """Make all pieces, `n_jobs` side by side."""
    (lab.folder / "parts").mkdir(parents=True, exist_ok=True)
    dense = {f"dense {seed}": seed for seed in seeds}
    stages: list[tuple[Any, Mapping[str, Any]]] = [
        (lab.make_dense, dense),
        (work, {p.name: p for p in pieces(lab, seeds) if not p.file.exists()}),
        (close, {f"closing {seed} {s:g}": Closing(lab, seed, s)
                 for seed in seeds for s in lab.study.sparsities}),
    ]  # fmt: skip
    for function, jobs in stages:
        values_of(side_by_side(function, jobs, n_jobs=n_jobs))


def collect(
    lab: Lab, seeds: Sequence[int], policy: str
) -> dict[str, dict[float, dict[int, dict[str, float]]]]:
    """`{model: {sparsity: {seed: measures}}}` of everything that is there, under one policy."""
    found: dict[str, dict[float, dict[int, dict[str, float]]]] = {}

    def put(model: str, sparsity: float, seed: int, values: Mapping[str, float]) -> None:
        found.setdefault(model, {}).setdefault(round(sparsity, 6), {})[seed] = dict(values)

    m = lab.study.n_candidates
    chains: dict[tuple[float, int], list[Mapping[str, float]]] = {}
    for piece in pieces(lab, seeds):
        if not piece.file.exists():
            continue
        for row in json.loads(piece.file.read_bytes())["rows"]:
            at, told = (row["sparsity"], piece.seed), row["under"][policy]
            if piece.kind in ("uniform", "greedy"):
                put(f"soup, {piece.kind}", *at, told["soup"])
            elif piece.kind in ("gmp", "dpf", "bimp"):
                put(f"{piece.kind.upper()} with soup", *at, told["soup"])
                put(f"{piece.kind.upper()} without", *at, mean_of(told["candidates"]))
            elif piece.kind == "imp-long":
                put(f"IMP, {m}× the epochs", *at, told["soup"])
            else:
                chains.setdefault(at, []).append(told["soup"])
            if "greedy" in told:
                put("soup, greedy", *at, told["greedy"])
            if piece.kind == "uniform":
                best = max(told["candidates"], key=lambda c: c["held-out"])
                put("best candidate", *at, best)
                put("mean candidate", *at, mean_of(told["candidates"]))
                put("ensemble of candidates", *at, told["ensemble"])
    for at, rows in chains.items():  # the mean of independent chains is less of an accident
        put("IMP", *at, mean_of(rows))
    for seed in seeds:
        for target in lab.study.sparsities:
            file = Closing(lab, seed, target).file
            if file.exists():
                told = json.loads(file.read_bytes())
                for row in told["rows"]:
                    put("IMP-RePrune", row["sparsity"], seed, row["under"][policy])
                    put("dense", row["sparsity"], seed, told["dense"][policy])
    return found


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--data", type=Path, help="folder with cifar10/ and resnet_cifar10/")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--epochs", type=int, help="of each retraining, instead of the study's")
    parser.add_argument(
        "--train-images",
        type=int,
        default=cifar_resnet.N_TRAIN,
        help="of resnet, to have it sooner",
    )
    parser.add_argument("--examples", type=int, help="of resnet: score no more of each split")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")
    parser.add_argument("--tables", action="store_true", help="only from the pieces that are there")
    options = parser.parse_args(arguments)
    study = STUDIES[options.study]
    if options.epochs is not None:
        study = replace(study, epochs=options.epochs)
    if options.quick:
        study = quickly(study)
    lab = Lab(
        study, options.out.absolute(), options.data, options.device, options.quick,
        options.train_images, options.examples,
    )  # fmt: skip
    default = [0, 1, 2, 3, 4] if study.name == "handwriting" else [0, 1]
    seeds = options.seeds or ([0] if options.quick else default)
    started = time.perf_counter()
    if not options.tables:
        run(lab, seeds, n_jobs=options.jobs)
    told = {
        "study": study.name, "seeds": list(seeds), "train": study.train.as_dict(),
        "epochs": study.epochs, "quick": options.quick, "device": options.device,
        "torch": torch.__version__,
        "train_images": options.train_images, "examples": options.examples,
        "seconds": round(time.perf_counter() - started, 1),
        "measures": {
            policy: {
                model: {str(s): by_seed for s, by_seed in by.items()}
                for model, by in collect(lab, seeds, policy).items()
            }
            for policy in study.policies
        },
    }  # fmt: skip
    write_json(lab.out / f"{study.name}.json", told)
    text = markdown(json.loads(json.dumps(told)))
    (lab.out / f"{study.name}.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    print(main())
