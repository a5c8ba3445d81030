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
from experiments.common import POLICIES, side_by_side, values_of, write_json
from experiments.ingredients import first_examples
from experiments.tables import t_interval
from scipy import special

import stockpot
from experiments import cifar_resnet
from stockpot import Checkpoint, Evaluator, TaskEvaluator, TrainConfig, fine_tune
from stockpot.analysis import expected_calibration_error
from stockpot.evaluate import Predictions
from stockpot.recipes import mean_logits
from stockpot.tasks.handwriting import FULL, QUICK, make_base
from stockpot.train import Magnitude, phase_sparsities, prunable_names

METRICS = ("test", "shift_average", "ece", "worst_class")
TITLES = {
    "test": "Test accuracy",
    "shift_average": "Mean accuracy over the shifts",
    "ece": "Expected calibration error on test (15 bins of equal mass; lower is better)",
    "worst_class": "Accuracy of the worst class of test",
}


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


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


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


def costs(study: Study) -> dict[str, tuple[int, int]]:
    """Model → epochs of retraining in all, and models that a prediction takes."""
    m, each = study.n_candidates, study.epochs * study.n_phases
    after = study.during_epochs - study.epochs
    between = study.during_epochs - each
    return {
        "dense": (0, 1),
        "soup, uniform": (m * each, 1),
        "soup, greedy": (m * each, 1),
        "best candidate": (m * each, 1),
        "mean candidate": (m * each, 1),
        "ensemble of candidates": (m * each, m),
        "IMP": (each, 1),
        f"IMP, {m}× the epochs": (m * each, 1),
        "IMP-RePrune": (m * each, 1),
        **{f"{k} with soup": (after + m * study.epochs, 1) for k in ("GMP", "DPF")},
        **{f"{k} without": (study.during_epochs, 1) for k in ("GMP", "DPF")},
        "BIMP with soup": (between + m * each, 1),
        "BIMP without": (between + m * each, 1),
    }


PAIRS = (
    ("soup, uniform", "best candidate"),
    ("soup, uniform", "mean candidate"),
    ("soup, uniform", "IMP"),
    ("soup, uniform", "IMP, 3× the epochs"),
    ("soup, uniform", "IMP-RePrune"),
    ("soup, uniform", "ensemble of candidates"),
    ("soup, greedy", "soup, uniform"),
    ("GMP with soup", "GMP without"),
    ("DPF with soup", "DPF without"),
    ("BIMP with soup", "BIMP without"),
)


def markdown(told: Mapping[str, Any]) -> str:
    """The tables of what was written as JSON, under each policy."""
    study = replace(STUDIES[told["study"]], epochs=told["epochs"])
    if told.get("quick"):
        study = quickly(study)
    parts = [
        (policy, _tables(study, found, len(told["seeds"])))
        for policy, found in told["measures"].items()
    ]
    if len(parts) == 1:
        return parts[0][1]
    return "\n\n".join(f"BatchNorm statistics {policy}:\n\n{text}" for policy, text in parts)


def _tables(
    study: Study, measured: Mapping[str, Mapping[str, Mapping[str, Any]]], n_seeds: int
) -> str:
    """One table for each measure, and one of differences paired by seed."""
    price = costs(study)
    found = {name: {float(s): v for s, v in by.items()} for name, by in measured.items()}
    sparsities = sorted({s for by in found.values() for s in by})
    head = (
        "| model | epochs | models | " + " | ".join(f"{100 * s:.1f} %" for s in sparsities) + " |"
    )
    rule = "|---|--:|--:|" + "--:|" * len(sparsities)
    parts = [
        f"{study.name}: mean over {n_seeds} seeds, with the 95 % t-interval of the mean "
        "(half its width), in percent."
    ]
    for metric in METRICS:
        rows = [
            f"| {name} | {price[name][0]} | {price[name][1]} | "
            + " | ".join(_cell([v[metric] for v in by.get(s, {}).values()]) for s in sparsities)
            + " |"
            for name, by in sorted(found.items(), key=lambda item: list(price).index(item[0]))
        ]
        parts += ["", f"{TITLES[metric]}:", "", head, rule, *rows]
    for metric in METRICS[:2]:
        parts += ["", f"{TITLES[metric]}, differences in points, paired by seed; (n): the 95 % "
                  "t-interval holds 0:", "", head.replace("| epochs | models ", ""),
                  rule.replace("--:|--:|", "", 1)]  # fmt: skip
        parts += [
            f"| {a} − {b} | "
            + " | ".join(
                _difference([
                    found[a][s][seed][metric] - found[b][s][seed][metric]
                    for seed in found[a].get(s, {}) if seed in found[b].get(s, {})
                ])
                for s in sparsities
            )
            + " |"
            for a, b in PAIRS
            if a in found and b in found
        ]  # fmt: skip
    return "\n".join(parts)


def _half(values: Sequence[float]) -> float | None:
    return None if len(values) < 2 else (t_interval(values)[1] - t_interval(values)[0]) / 2


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half = _half(values)
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if half is None else f"{mean} ± {100 * half:.2f}"


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half = _half(values)
    mean = statistics.fmean(values)
    if half is None:
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} ± {100 * half:.2f}" + (" (n)" if abs(mean) <= half else "")


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


def quickly(study: Study) -> Study:
    """The study in a few steps."""
    train = replace(study.train, epochs=2, score_every=2, batch_size=20)
    return replace(
        study, sparsities=study.sparsities[-1:], train=train, epochs=1, n_phases=2,
        during_epochs=4 if study.during_epochs else 0,
    )  # fmt: skip


if __name__ == "__main__":
    print(main())
