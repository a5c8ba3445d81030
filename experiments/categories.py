"""Keeping every category of a task whose categories are shifts.

    python -m experiments.handwriting --out ../handwriting --seeds 20 21 22 23 24
    python -m experiments.categories --demos ../handwriting --out ../categories

makes, per seed, a task whose categories are the ways in which a digit may look: plain, one of six
corruptions, or print, which the base was made for. Of the lab's test part, 300 digits choose and
300 others report, each in every category. `auto` chooses among the soups of the demo's runs,
without and with `keep_categories`. Reported is what the two score, and where they are worse than
the base beyond noise. Learned soups, which take most of the time, are left out.

It was set up on seeds 300 and above. Each seed is a file in OUT, and a killed call continues.
Without `--demos` it makes bases and runs itself. Writes `categories.json` and `categories.md`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import evenly, of_seeds, write_json, write_results
from torch.utils.data import ConcatDataset, Subset

import stockpot
from experiments import tables
from stockpot import ClassificationTask, Split
from stockpot.evaluate import paired_difference
from stockpot.tasks.handwriting import FULL, QUICK, SHIFTS, Lab, make_base
from stockpot.train import run_sweep

CATEGORIES = {"test": "plain", **{name: name for name in SHIFTS}, "fonts": "print"}
"""Split of the lab → category; `print` is what the base was made for."""
MOST = 300
"""Examples of a category that choose, and that report."""
ALL = "all examples"
BASE, SINGLE, PLAIN, KEPT = "base", "best single run", "auto", "auto --keep-categories"
MODELS = (BASE, SINGLE, PLAIN, KEPT)


def halves(lab: Lab, *, seed: int) -> ClassificationTask:
    """The lab's task with two parts of what it reports on as its held-out and test splits."""
    task = lab.task(seed=seed)
    orders: dict[str, np.ndarray] = {}
    for name in CATEGORIES:
        # A corrupted digit is one of `test`: it has to fall on the same side in every category.
        one = "fonts" if name == "fonts" else "test"
        if one not in orders:
            labels = np.array([int(y) for _, y in task.splits[one].dataset])
            orders[one] = evenly(labels, seed=seed)
        orders[name] = orders[one]

    def part(role: str, indices: Mapping[str, np.ndarray]) -> Split:
        data = [
            Subset(task.splits[name].dataset, index.tolist()) for name, index in indices.items()
        ]
        categories = [CATEGORIES[name] for name, index in indices.items() for _ in index]
        return Split(ConcatDataset(data), role=role, categories=categories)

    return ClassificationTask(
        build=task.build,
        splits={
            "held-out": part("held-out", {n: o[: len(o) // 2][:MOST] for n, o in orders.items()}),
            "test": part("test", {n: o[len(o) // 2 :][:MOST] for n, o in orders.items()}),
        },
        train_set=task.train_set,
        version="categories-1",
    )


def sweep(seed: int, *, lab: Lab, place: Path) -> tuple[Path, list[str]]:
    """The base and the runs of a seed, made in `place` as far as they are missing."""
    base = place / "base.safetensors"
    if not base.exists():
        make_base(base, lab, seed=seed)
    made = run_sweep(lab.task_maker(seed=seed), str(base), lab.sweep(seed=seed), out=place / "runs")
    made.raise_failures()
    return base, made.paths


def study(seed: int, *, lab: Lab, out: Path, demos: Path | None) -> None:
    """Choose and report for one seed, unless that is done."""
    place = out / f"seed-{seed}"
    if (place / "scores.json").exists():
        return
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    if demos is None:
        base, runs = sweep(seed, lab=lab, place=place)
    else:
        base = demos / f"seed-{seed}" / "base.safetensors"
        runs = [str(path) for path in sorted((base.parent / "runs").glob("run-*.safetensors"))]
    task = halves(lab, seed=seed)
    with stockpot.TaskEvaluator(task, cache=place / "journal", device="cpu") as evaluator:
        start = evaluator.predictions(stockpot.open(base), "test").by_category()

        def measured(model: stockpot.Checkpoint, chosen: str) -> dict[str, Any]:
            own = evaluator.predictions(model, "test")
            accuracy, lost = {ALL: float(np.mean(own.per_example))}, {}
            for category, part in own.by_category().items():
                accuracy[category] = float(np.mean(part.per_example))
                found = paired_difference(part.per_example, start[category].per_example)
                if found.value < 0 and not found.within_noise:
                    lost[category] = [found.value, found.low, found.high]
            return {"chosen": chosen, "accuracy": accuracy, "lost": lost}

        single = stockpot.BestSingle().cook(runs, evaluator=evaluator)
        found = {
            BASE: measured(stockpot.open(base), BASE),
            SINGLE: measured(single.scored_as, Path(single.selected[0]).stem),
        }
        for name, keep in ((PLAIN, False), (KEPT, True)):
            soup = stockpot.auto(
                runs, evaluate=evaluator, base=base, keep_categories=keep,
                learned=False, ensembles=False,
            )  # fmt: skip
            told = soup.to_json()
            alpha = f", α = {told['alpha']:g}" if "alpha" in told else ""
            found[name] = measured(soup.scored_as, f"{told['chosen']}{alpha}")
    write_json(place / "scores.json", found)


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy by category, what the constraint costs, and what was chosen and lost per seed."""
    names = (ALL, *dict.fromkeys(CATEGORIES.values()))

    def values(model: str, name: str) -> list[float]:
        return [one[model]["accuracy"][name] for one in found.values()]

    def costs(name: str) -> str:
        pairs = zip(values(KEPT, name), values(PLAIN, name), strict=True)
        return tables.in_points(tables.over_seeds([kept - plain for kept, plain in pairs]))

    scores = [
        [
            name,
            *(tables.in_percent(tables.over_seeds(values(m, name))) for m in MODELS),
            costs(name),
        ]
        for name in names
    ]
    lost = [
        [f"{seed}, {model}", one[model]["chosen"], _losses(one[model]["lost"])]
        for seed, one in found.items()
        for model in (SINGLE, PLAIN, KEPT)
    ]
    return "\n".join(
        [
            f"Accuracy in percent on the digits that chose nothing: mean over {len(found)} seeds ± "
            f"half of its 95 % t-interval. The last column is {KEPT} less {PLAIN}, in points, "
            "paired by seed.",
            "",
            *tables.table(["category", *MODELS, "difference"], scores),
            "",
            "Categories in which each is worse than the base beyond noise, in points, with the "
            "95 % interval over examples:",
            "",
            *tables.table(["seed, model", "chosen", "worse than the base in"], lost),
        ]
    )


def _losses(lost: Mapping[str, Iterable[float]]) -> str:
    found = []
    for name, numbers in lost.items():
        value, low, high = (100 * number for number in numbers)
        found.append(f"{name} {value:+.1f} ({low:+.1f} to {high:+.1f})")
    return ", ".join(found) or "none"


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--demos", type=Path, help="folder that experiments.handwriting wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
    parser.add_argument("--quick", action="store_true", help="the smaller lab")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    given = parser.parse_args(arguments)
    sizes = lab if lab is not None else QUICK if given.quick else FULL
    out = given.out.resolve()
    demos = None if given.demos is None else given.demos.resolve()
    work = functools.partial(study, lab=sizes, out=out, demos=demos)
    found = of_seeds(work, given.seeds, out, file="scores.json", n_jobs=given.jobs)
    return write_results(out, "categories", found, markdown(found))


if __name__ == "__main__":
    # Workers are sent functions, which they look up in the module by its name.
    from experiments import categories

    print(categories.main())
