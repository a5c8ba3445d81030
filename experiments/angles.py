"""Angle against the gain of averaging, by what varied between the runs: docs/results/diagnosis.md.

    python -m experiments.angles --out ../angles --seeds 0 1 2 3 4

makes, per seed, a base of handwriting and three sweeps of five runs in which only the seed, only
the learning rate, or only the augmentation varies. `stockpot.diagnose` measures the angle of every
pair of a sweep (of parameters, about the base), and what the mean of the two scores above the mean
of their scores, on held-out digits. Each seed is a file in OUT; a killed call continues. Writes
`angles.json` and `angles.md`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments.common import of_seeds, write_json, write_results

import stockpot
from experiments import tables
from stockpot import TrainConfig, diagnose, fine_tune
from stockpot.analysis import pair_correlation
from stockpot.tasks.handwriting import FULL, QUICK, Lab, make_base

CONFIG = TrainConfig(
    lr=3e-3, weight_decay=0.01, epochs=12, batch_size=32, warmup_fraction=0.1, score_every=12,
    shift_pixels=0.5, rotate_degrees=10.0,
)  # fmt: skip
RATES = tuple(10 ** -(2.2 + 0.25 * i) for i in range(5))
MOVES = ((0.0, 0.0), (0.5, 0.0), (0.0, 10.0), (0.5, 10.0), (1.0, 20.0))
"""Pixels and degrees of the augmentation."""


def sweeps(seed: int) -> dict[str, list[tuple[TrainConfig, int]]]:
    """What varies → configuration and seed of each run."""
    one = 1000 * seed
    return {
        "seed": [(CONFIG, one + i) for i in range(5)],
        "learning rate": [(replace(CONFIG, lr=lr), one) for lr in RATES],
        "augmentation": [
            (replace(CONFIG, shift_pixels=pixels, rotate_degrees=degrees), one)
            for pixels, degrees in MOVES
        ],
    }


def study(seed: int, *, lab: Lab, out: Path) -> None:
    """Train and diagnose the sweeps of one seed, unless that is done."""
    place = out / f"seed-{seed}"
    if (place / "pairs.json").exists():
        return
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    base, task = place / "base.safetensors", lab.task(seed=seed)
    if not base.exists():
        make_base(base, lab, seed=seed)
    found: dict[str, Any] = {}
    for varied, runs in sweeps(seed).items():
        paths = []
        for i, (config, own) in enumerate(runs):
            paths.append(place / f"{varied.replace(' ', '-')}-{i}.safetensors")
            if not paths[-1].exists():
                fine_tune(task, base, config, out=paths[-1], seed=own, device="cpu")
        with stockpot.TaskEvaluator(task, cache=place / "journal", device="cpu") as evaluator:
            pairs = diagnose(paths, base=base, evaluator=evaluator).pairs
        found[varied] = [
            {"i": p.i, "j": p.j, "degrees": p.degrees, "advantage": p.advantage,
             "advantage_loss": p.advantage_loss, "barrier": p.barrier}
            for p in pairs
        ]  # fmt: skip
    write_json(place / "pairs.json", found)


def markdown(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """A row for each of what varied, and one for all sweeps together."""
    kinds = list(next(iter(found.values())))
    rows = []
    for name, part in [*((kind, [kind]) for kind in kinds), ("all", kinds)]:
        pairs = [
            # Runs of different sweeps are different runs: they are resampled apart.
            ((f"{seed} {kind}", p["i"], p["j"]), p)
            for seed, by in found.items()
            for kind in part
            for p in by[kind]
        ]
        degrees = [p["degrees"] for _, p in pairs]
        rows.append(
            [
                name,
                str(len(pairs)),
                f"{statistics.fmean(degrees):.0f} ({min(degrees):.0f}–{max(degrees):.0f})",
                f"{100 * statistics.fmean(p['advantage'] for _, p in pairs):+.2f}",
                f"{statistics.fmean(p['advantage_loss'] for _, p in pairs):+.4f}",
                _r(pairs, "advantage"),
                _r(pairs, "advantage_loss"),
            ]
        )
    head = ["varied", "pairs", "degrees", "advantage, points", "nat", "r, points", "r, nat"]
    return "\n".join(tables.table(head, rows))


def _r(pairs: Sequence[tuple[tuple[str, int, int], Mapping[str, Any]]], name: str) -> str:
    numbers = {sweep: i for i, sweep in enumerate(dict.fromkeys(key[0] for key, _ in pairs))}
    found = pair_correlation(
        [(100 * numbers[sweep] + i, 100 * numbers[sweep] + j) for (sweep, i, j), _ in pairs],
        [p["degrees"] for _, p in pairs],
        [p[name] for _, p in pairs],
    )
    if found.value is None:
        return "–"
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.value:+.2f}{interval}"


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a smaller base")
    given = parser.parse_args(arguments)
    sizes = lab if lab is not None else QUICK if given.quick else FULL
    out = given.out.resolve()
    work = functools.partial(study, lab=sizes, out=out)
    found = of_seeds(work, given.seeds, out, file="pairs.json", n_jobs=given.jobs)
    return write_results(out, "angles", found, markdown(found))


if __name__ == "__main__":
    from experiments import angles

    print(angles.main())
