"""Soups of fine-tunes of a small CLIP, and what they find by text: docs/results/clip.md.

    python -m experiments.clip_soups --out ../clip-soups --seeds 0 1 2 3 4

makes, per seed, the CLIP and the zero-shot head of `experiments.clip_digits` (its image tower is a
vision transformer), and a sweep of eight fine-tunes of that classifier on 300 handwritten digits.
Base, best single run, uniform and greedy soup, WiSE-FT and ensembles are scored as
classifiers; and from text to image: every test image is ranked by its similarity to the prompt of a
class, and the mean over classes of the average precision is reported.

Everything is chosen on held-out; the rest only reports. Each seed is a file in OUT, and a killed
call goes on. Writes `clip_soups.json` and `clip_soups.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.clip_digits import CAPTIONS, CLASSES, Lab, make_task, train_clip
from experiments.common import SHIFT_AVERAGE, side_by_side, values_of, write_json, write_results
from sklearn.metrics import average_precision_score

import stockpot
from experiments import tables
from stockpot import Task, TaskEvaluator
from stockpot.evaluate import Predictions, with_splits
from stockpot.recipes import ensemble, greedy_ensemble
from stockpot.tasks.clip import make_zero_shot
from stockpot.train import SweepOptions, run_sweep

N_RUNS = 8
SPACE = {
    "lr": {"log_uniform": [3e-4, 3e-3]},
    "weight_decay": {"log_uniform": [1e-3, 1e-1]},
    "epochs": {"choice": [10, 15, 20]},
    "batch_size": 32,
    "warmup_fraction": 0.1,
    "score_every": 20,
}
"""Around the one setting of `experiments.clip_digits`, whose rate was chosen on another seed."""
BEST, MEAN = "best single", "mean of the runs"
BY_TEXT = "text → image"
COLUMNS = ("held-out", "test", SHIFT_AVERAGE, "fonts", BY_TEXT)


def own_ground_apart(folder: Path, lab: Lab, *, seed: int) -> Task:
    """The task, with the CLIP's own ground (print) beside the average over the shifts."""
    task = make_task(folder, lab, seed=seed)
    fonts = dataclasses.replace(task.splits["fonts"], averaged=False)
    return with_splits(task, {**task.splits, "fonts": fonts})


def precision_by_text(found: Predictions) -> float:
    """Mean over classes of the average precision with which its prompt finds its images."""
    targets = np.asarray(found.targets)
    return statistics.fmean(
        average_precision_score(targets == digit, found.outputs[:, digit])
        for digit in range(found.outputs.shape[1])
    )


def study(seed: int, *, out: Path, lab: Lab, n_runs: int = N_RUNS) -> dict[str, Any]:
    """The rows of one seed, or what an earlier call found."""
    file = out / "parts" / f"seed-{seed}.json"
    if not file.exists():
        torch.set_num_threads(1)
        folder = out / f"seed-{seed}"
        clip, base = folder / "clip", folder / "zero-shot"
        if not clip.exists():
            train_clip(clip, lab, seed=seed)
        if not base.exists():
            make_zero_shot(clip, base, classes=CLASSES, templates=CAPTIONS)
        sweep = run_sweep(
            functools.partial(own_ground_apart, base, lab, seed=seed), base,
            SweepOptions(n_runs=n_runs, space=SPACE, seed=seed, device="cpu"),
            out=folder / "runs", cache=folder / "journal",
        )  # fmt: skip
        sweep.raise_failures()
        task = own_ground_apart(base, lab, seed=seed)
        with TaskEvaluator(task, cache=folder / "journal", device="cpu", seed=seed) as evaluator:
            write_json(file, {"seed": seed, "rows": rows(evaluator, base, sweep.paths)})
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def rows(evaluator: TaskEvaluator, base: Path, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{model: {column: value}}; how many runs are in it is `kept`."""
    runs = stockpot.Ingredients(paths)
    soups = {
        BEST: stockpot.BestSingle().cook(runs, evaluator=evaluator),
        "uniform": stockpot.Uniform().cook(runs, evaluator=evaluator),
        "greedy": stockpot.Greedy(explain=False).cook(runs, evaluator=evaluator),
    }
    line = stockpot.Ingredients(paths, base=base)
    soups["WiSE-FT of uniform"] = stockpot.WiseFT(curve=False).cook(line, evaluator=evaluator)
    soups["WiSE-FT of uniform, α = 0.5"] = stockpot.WiseFT(alpha=0.5).cook(
        line, evaluator=evaluator
    )
    models = {"base": stockpot.open(base), **{name: s.scored_as for name, s in soups.items()}}
    each = [_row(evaluator, model, None) for model in runs]
    found = {name: _row(evaluator, model, None) for name, model in models.items()}
    for name, soup in soups.items():
        found[name]["kept"] = len(soup.selected)
    found[MEAN] = {column: statistics.fmean(row[column] for row in each) for column in COLUMNS} | {
        "kept": None
    }
    for name, made in (
        ("ensemble", ensemble(evaluator, list(runs))),
        ("greedy ensemble", greedy_ensemble(evaluator, list(runs), "held-out")),
    ):
        scores = {c: made.scores[c].value for c in COLUMNS if c != BY_TEXT}
        by_text = precision_by_text(made.predictions["test"])
        found[name] = {**scores, BY_TEXT: by_text, "kept": len(made.members)}
    return found


def _row(evaluator: TaskEvaluator, model: Any, kept: int | None) -> dict[str, Any]:
    scores = evaluator.scores(model)
    by_text = precision_by_text(evaluator.predictions(model, "test"))
    return {**{c: scores[c].value for c in COLUMNS if c != BY_TEXT}, BY_TEXT: by_text, "kept": kept}


def gains(found: Sequence[Mapping[str, Any]], model: str, other: str, column: str) -> list[float]:
    """`model` minus `other` in one column, one for each seed."""
    return [one["rows"][model][column] - one["rows"][other][column] for one in found]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Scores, and points above the best single run."""
    models = list(found[0]["rows"])
    shown = [column.replace("_", " ") for column in COLUMNS]
    scores, above = [], []
    for model in models:
        kept = [one["rows"][model]["kept"] for one in found]
        mean = "" if None in kept else f"{statistics.fmean(kept):.1f}"
        cells = [tables.percent([one["rows"][model][c] for one in found]) for c in COLUMNS]
        scores.append([model, mean, *cells])
        if model != BEST:
            differences = (tables.over_seeds(gains(found, model, BEST, c)) for c in COLUMNS)
            above.append([model, *map(tables.in_points, differences)])
    return "\n".join(
        [
            f"{len(found)} sweeps; accuracy, and average precision from text to image, in percent, "
            "mean ± half of its 95 % t-interval:", "",
            *tables.table(["model", "models in it", *shown], scores), "",
            f"Points above {BEST}, paired by sweep, with 95 % t-intervals; (n): it holds 0:", "",
            *tables.table(["model", *shown], above),
        ]
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a CLIP of a few steps, two runs")
    given = parser.parse_args(arguments)
    quick = Lab(n_print=200, steps=4, sets=2, n_train=40, n_held_out=50, n_test=60, n_fonts=20)
    sizes = lab if lab is not None else quick if given.quick else Lab()
    n_runs = 2 if given.quick or lab is not None else N_RUNS
    work = functools.partial(study, out=given.out.resolve(), lab=sizes, n_runs=n_runs)
    jobs = {f"seed {seed}": seed for seed in given.seeds}
    found = values_of(side_by_side(work, jobs, n_jobs=given.jobs))
    return write_results(given.out, "clip_soups", found, markdown(found))


if __name__ == "__main__":
    from experiments import clip_soups

    print(clip_soups.main())
