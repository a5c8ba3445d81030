"""Landscapes, angles, soup against ensemble, barriers, calibration: docs/results/diagnosis.md.

    python -m experiments.handwriting --out ../handwriting            # makes the sweeps
    python -m experiments.diagnostics --demos ../handwriting --data ../shared/data \
        --seeds 0 1 2 3 4 --out ../diagnostics

Everything between models is measured on held-out digits, calibration on the test. A pair of runs
has moderate learning rates when both lie in the lower half of the sweep's range (on its logarithmic
scale), and high ones otherwise. Correlations over pairs have intervals by a bootstrap over runs.
With `--data`, the two MNIST networks of `mnist_cnn_endpoints`, trained from scratch with two seeds,
stand beside: no base, no basin. Everything is journalled in OUT; a killed call continues, and seeds
may be done one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import barrier
from torch import nn
from torch.utils.data import TensorDataset

from experiments import tables
from stockpot import (
    ClassificationTask,
    Coefficients,
    Diagnosis,
    Evaluator,
    Ingredients,
    Mixture,
    Split,
    TaskEvaluator,
    diagnose,
    expand_paths,
)
from stockpot.analysis import (
    barrier_between,
    fit_beta,
    negative_log_likelihood,
    pair_correlation,
    soup_minus_ensemble,
)
from stockpot.evaluate import Predictions
from stockpot.tasks.handwriting import FULL, QUICK, Lab

ALPHAS, STEP = (0.1, 0.3, 0.5, 0.7, 0.9), 0.1
"""Of the finer comparison of soup and ensemble."""
EPOCHS = (50, 100, 150, 200)


@dataclass(frozen=True)
class Gap:
    """Soup minus ensemble at one point between two runs, which are numbered over all seeds."""

    seed: int
    runs: tuple[int, int]
    moderate: bool
    gap: Any


@dataclass(frozen=True)
class SeedStudy:
    """One sweep: its diagnosis, the finer gaps, and a barrier.

    `calibrated` is the barrier between the two best runs when a temperature is fitted at each point
    of the line: what is left when being more or less sure does not count.
    """

    seed: int
    diagnosis: Diagnosis
    rates: tuple[float, ...]
    gaps: tuple[Gap, ...]
    calibrated: float


def study_seed(
    seed: int, lab: Lab, folder: Path, *, cache: Path, out: Path | None = None
) -> SeedStudy:
    """Diagnose the sweep of one demo, and compare soup and ensemble on all of its pairs."""
    paths = expand_paths([str(folder / "runs")])
    space = lab.space()
    drawn = [space.draw(index, seed=seed) for index in range(lab.n_runs)]
    rates = tuple(values["lr"] for values in drawn)
    middle = 10 ** -(sum(lab.lr_exponents) / 2)
    hyperparameters = {
        path: {name: values[name] for name in ("lr", "epochs", "mixup") if name in values}
        for path, values in zip(paths, drawn, strict=True)
    }
    with TaskEvaluator(lab.task(seed=seed), cache=cache, device="cpu", seed=seed) as evaluator:
        given = Ingredients(paths, base=str(folder / "base.safetensors"))
        found = diagnose(given, evaluator=evaluator, hyperparameters=hyperparameters)
        line = Lines(given, evaluator, found.split)
        gaps = [
            Gap(
                seed,
                (100 * seed + p.i, 100 * seed + p.j),
                max(rates[p.i], rates[p.j]) <= middle,
                gap,
            )
            for p in found.pairs
            for gap in line.gaps(p.i, p.j)
        ]
        calibrated = calibrated_barrier(line, found)
    if out is not None:
        from stockpot.report import write_diagnosis

        write_diagnosis(found, out / f"seed-{seed}", force=True)
    return SeedStudy(seed, found, rates, tuple(gaps), calibrated)


@dataclass(frozen=True)
class Lines:
    """Points on the lines between runs, scored on one split."""

    runs: Ingredients
    evaluator: Evaluator
    split: str

    def at(self, i: int, j: int, alpha: float) -> Predictions:
        """Predictions of (1 − alpha) run i + alpha run j."""
        shares = [0.0] * len(self.runs)
        shares[i], shares[j] = 1 - alpha, alpha
        mixture = Mixture(self.runs, Coefficients.per_model(shares))
        return self.evaluator.predictions(mixture, self.split)

    def gaps(self, i: int, j: int) -> list[Any]:
        """Soup minus ensemble of two runs at `ALPHAS`, with central differences of `STEP`."""
        wanted = {0.0, 1.0, *(round(x + d, 9) for x in ALPHAS for d in (-STEP, 0.0, STEP))}
        seen = {x: self.at(i, j, x) for x in sorted(wanted)}
        return [
            soup_minus_ensemble(
                alpha,
                ends=(seen[0.0].outputs, seen[1.0].outputs),
                path=[seen[round(alpha + d, 9)].outputs for d in (-STEP, 0.0, STEP)],
                step=STEP,
                targets=seen[0.0].targets.numpy(),
            )
            for alpha in ALPHAS
        ]


def calibrated_barrier(lines: Lines, found: Diagnosis) -> float:
    """Between the two best runs, each point at the temperature that suits it best."""
    line = next(line for line in found.lines if line.kind == "runs")
    i, j = (found.ingredients.index(path) for path in (line.a, line.b))
    losses = []
    for alpha in line.alphas:
        seen = lines.at(i, j, alpha)
        targets = seen.targets.numpy()
        beta = fit_beta(seen.outputs, targets)
        losses.append(negative_log_likelihood(seen.outputs, targets, beta=beta))
    return barrier(line.alphas, losses)[0]


def mnist_task(data: Path) -> ClassificationTask:
    """The MNIST test digits, in the role of held-out data: nothing is chosen here."""
    with np.load(data / "digits" / "mnist.npz") as arrays:
        images = torch.from_numpy(arrays["test_images"])
        labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    inputs = images.float().reshape(len(images), 1, 28, 28) / 255
    return ClassificationTask(
        build=mnist_network,
        splits={"MNIST test": Split(TensorDataset(inputs, labels), role="held-out")},
        batch_size=500,
        version="mnist-endpoints-1",
    )


def mnist_network() -> nn.Module:
    """conv 32, pool, conv 64, pool, linear: the network of the checkpoints."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Scratch:
    """Two networks of different initialisations: the barrier on the line between them."""

    epoch: int
    barrier: float
    losses: tuple[float, float]
    accuracies: tuple[float, float, float]


def study_scratch(data: Path, epoch: int, *, cache: Path) -> Scratch:
    """The two seeds at one epoch: barrier over 11 points; accuracy of first, middle, second."""
    paths = [
        str(data / "mnist_cnn_endpoints" / f"edpt{n}_epoch{epoch:03d}.safetensors") for n in (1, 2)
    ]
    with TaskEvaluator(mnist_task(data), cache=cache, device="cpu") as evaluator:
        given = Ingredients(paths)

        def at(alpha: float) -> Mixture:
            return Mixture(given, Coefficients.per_model([1.0 - alpha, alpha]))

        height = barrier_between(evaluator, "MNIST test", at, np.linspace(0, 1, 11).tolist())
        if height is None:
            raise AssertionError("the network gives logits")
        ends = [evaluator.predictions(at(alpha), "MNIST test") for alpha in (0.0, 1.0)]
        losses = [
            float(nn.functional.cross_entropy(torch.from_numpy(e.outputs.copy()), e.targets))
            for e in ends
        ]
        accuracies = [evaluator.score(at(alpha), "MNIST test").value for alpha in (0.0, 0.5, 1.0)]
    return Scratch(epoch, height.height, (losses[0], losses[1]), tuple(accuracies))  # type: ignore[arg-type]


def correlation(gaps: Sequence[Gap]) -> Any:
    """Approximation against measured difference over points between pairs."""
    return pair_correlation(
        [gap.runs for gap in gaps],
        [gap.gap.approximation for gap in gaps],
        [gap.gap.measured for gap in gaps],
    )


def advantages(studies: Sequence[SeedStudy], *, of_loss: bool) -> Any:
    """Angle against interpolation advantage over the pairs of all sweeps."""
    rows = [(study.seed, p) for study in studies for p in study.diagnosis.pairs]
    return pair_correlation(
        [(100 * seed + p.i, 100 * seed + p.j) for seed, p in rows],
        [float(p.degrees or 0.0) for _, p in rows],
        [p.advantage_loss if of_loss else p.advantage for _, p in rows],
    )


def markdown(studies: Sequence[SeedStudy], scratch: Sequence[Scratch]) -> str:
    """All tables, each under its heading."""
    parts = [
        *_section("Landscape", _landscapes(studies)),
        *_section("Angle and advantage", _angles(studies)),
        *_section("Soup minus ensemble", _gaps(studies)),
        *_section("Barriers", _barriers(studies, scratch)),
        *_section("Calibration", _calibration(studies)),
    ]
    return "\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"### {title}", "", *lines, ""]


def _landscapes(studies: Sequence[SeedStudy]) -> list[str]:
    rows = []
    for study in studies:
        plane = study.diagnosis.landscape
        if plane is None:
            raise AssertionError("no budget was given, and the runs differ")
        base, first, second, middle = plane.marks[:4]
        cells = [f"{m.loss:.3f}, {100 * (m.score or 0):.1f}" for m in (base, first, second, middle)]
        spots = f"{min(s.loss for s in plane.spots):.3f}"
        rows.append([str(study.seed), *cells, spots, "yes" if plane.lower else "no"])
    head = ["seed", "base", "best run", "second", "their average", "lowest of the plane", "lower?"]
    return tables.table(head, rows)


def _angles(studies: Sequence[SeedStudy]) -> list[str]:
    rows = []
    for name, part in [*((str(s.seed), [s]) for s in studies), ("all", studies)]:
        pairs = [p for s in part for p in s.diagnosis.pairs]
        degrees = [p.degrees for p in pairs if p.degrees is not None]
        rows.append(
            [
                name,
                str(len(pairs)),
                f"{min(degrees):.0f}–{max(degrees):.0f}",
                f"{100 * np.mean([p.advantage for p in pairs]):+.2f}",
                _r(advantages(part, of_loss=False)),
                _r(advantages(part, of_loss=True)),
            ]
        )
    head = ["seed", "pairs", "degrees", "mean advantage", "r, accuracy", "r, loss"]
    return tables.table(head, rows)


def _gaps(studies: Sequence[SeedStudy]) -> list[str]:
    every = [gap for study in studies for gap in study.gaps]
    rows = []
    for name, part in (
        ("both moderate", [g for g in every if g.moderate]),
        ("one high", [g for g in every if not g.moderate]),
        ("all", every),
    ):
        if not part:
            continue
        measured = np.array([g.gap.measured for g in part])
        expected = np.array([g.gap.approximation for g in part])
        rows.append(
            [
                name,
                str(len({g.runs for g in part})),
                str(len(part)),
                f"{measured.mean():+.4f}",
                f"{expected.mean():+.4f}",
                f"{np.sqrt(np.mean((measured - expected) ** 2)):.4f}",
                _r(correlation(part)),
            ]
        )
    head = ["rates", "pairs", "points", "measured (nat)", "expected (nat)", "RMS error", "r"]
    return tables.table(head, rows)


def _barriers(studies: Sequence[SeedStudy], scratch: Sequence[Scratch]) -> list[str]:
    rows = []
    for study in studies:
        found = study.diagnosis
        best = next(line for line in found.lines if line.kind == "runs")
        n_points, heights = str(len(best.alphas)), [p.barrier for p in found.pairs]
        name = f"seed {study.seed}: "
        rows += [
            [f"{name}the two best runs", f"{best.barrier:.4f}", n_points],
            [
                f"{name}the same, each point at its own temperature",
                f"{study.calibrated:.4f}",
                n_points,
            ],
            [f"{name}all {len(heights)} pairs, highest", f"{max(heights):.4f}", "5"],
        ]
    for one in scratch:
        middle = f"accuracy {', '.join(f'{a:.3f}' for a in one.accuracies)}"
        rows.append(
            [f"MNIST from scratch, epoch {one.epoch} ({middle})", f"{one.barrier:.4f}", "11"]
        )
    return tables.table(["models", "barrier (nat)", "points"], rows)


def _calibration(studies: Sequence[SeedStudy]) -> list[str]:
    rows = []
    kinds = {"best single": 0, "greedy": "greedy", "uniform": "uniform", "ensemble": "ensemble"}
    for name, key in kinds.items():
        found = [
            study.diagnosis.calibration[0]
            if key == 0
            else next((r for r in study.diagnosis.calibration if r.name == key), None)
            for study in studies
        ]
        # A greedy soup of one run is that run.
        kept = [r or s.diagnosis.calibration[0] for r, s in zip(found, studies, strict=True)]
        cells = [
            tables.in_percent(tables.over_seeds([getattr(getattr(r, when), what) for r in kept]))
            for what in ("ece", "nll", "brier")
            for when in ("before", "after")
        ]
        rows.append([name, *cells])
    head = ["test, × 100", "ECE", "scaled", "NLL", "scaled", "Brier", "scaled"]
    return tables.table(head, rows)


def _r(found: Any) -> str:
    if found.value is None:
        return "–"
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.value:+.2f}{interval}"


def as_json(studies: Sequence[SeedStudy], scratch: Sequence[Scratch]) -> dict[str, Any]:
    """Every number of the tables, and the points behind the correlations."""
    return {
        "seeds": {
            str(s.seed): {
                "rates": list(s.rates),
                "calibrated_barrier": s.calibrated,
                "diagnosis": s.diagnosis.to_json(),
                "gaps": [
                    {"runs": list(g.runs), "moderate": g.moderate, **asdict(g.gap)} for g in s.gaps
                ],
            }
            for s in studies
        },
        "advantage": asdict(advantages(studies, of_loss=False)) if studies else None,
        "scratch": [asdict(one) for one in scratch],
    }


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--demos", type=Path, required=True, help="what experiments.handwriting wrote"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="the demos were made with --quick")
    parser.add_argument("--data", type=Path, help="shared data, for the networks from scratch")
    parser.add_argument("--epochs", type=int, nargs="+", default=[200], help="of those networks")
    parser.add_argument("--pages", action="store_true", help="also a page for each seed")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cache, studies = given.out / "cache", []
    sizes = lab if lab is not None else QUICK if given.quick else FULL
    for seed in given.seeds:
        folder = given.demos / f"seed-{seed}"
        studies.append(
            study_seed(seed, sizes, folder, cache=cache, out=given.out if given.pages else None)
        )
        print(f"seed {seed}: {studies[-1].diagnosis.verdict.answer}", file=sys.stderr, flush=True)
    scratch = [
        study_scratch(given.data, epoch, cache=cache)
        for epoch in (given.epochs if given.data is not None else ())
    ]
    text = markdown(studies, scratch)
    (given.out / "diagnostics.md").write_text(text + "\n")
    (given.out / "diagnostics.json").write_text(json.dumps(as_json(studies, scratch), indent=1))
    return text


if __name__ == "__main__":
    print(main())
