"""Smaller questions of the papers, asked of the sweeps of the demo: docs/results/questions.md.

    python -m experiments.handwriting --out ../handwriting --seeds 20 21 22 23 24 --named uniform
    python -m experiments.questions --demos ../handwriting --out ../questions \
        --seeds 20 21 22 23 24

Of twelve fine-tunes of one base per seed it asks: does a good α depend on the hyper-parameters? Do
runs that err on different digits make better ensembles? Do fine-tunes differ less from each other
than from the base? What do more members add? What is left of it under stronger and stronger shifts,
and how well calibrated is it? Is there a way to train that does what WiSE-FT does afterwards? Do
runs average as well that vary in their loss and their crops?

What is chosen (an α, the strength of a pull) is chosen on held-out; test and shifts only report.
Each seed is a file in OUT, and a killed call goes on. Writes `questions.json` and `questions.md`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from experiments.common import SHIFT_AVERAGE, side_by_side, values_of, write_json, write_results
from scipy import ndimage, special
from torch.utils.data import TensorDataset

import stockpot
from experiments import tables
from stockpot import Role, Split, TaskEvaluator, TrainConfig, fine_tune
from stockpot.analysis import expected_calibration_error
from stockpot.evaluate import with_splits
from stockpot.recipes import mean_logits
from stockpot.tasks.handwriting import FULL, QUICK, SHIFTS, Lab
from stockpot.train import run_sweep

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
NUMBERS = (1, 2, 3, 4, 6, 8, 12)
DEGREES = (0, 10, 20, 30, 40, 50)
NOISE = (0, 1, 2, 4, 6, 8)
"""Standard deviation, of ink counted 0..16."""
COLUMNS = ("held-out", "test", SHIFT_AVERAGE, "fonts")
CONFIG = TrainConfig(
    lr=10**-2.35, weight_decay=0.01, epochs=18, batch_size=32, warmup_fraction=0.1, score_every=18,
    shift_pixels=0.5, rotate_degrees=10.0, ema_decays=(0.9,),
)  # fmt: skip
"""In the middle of what the demo draws."""
TRAINED: Mapping[str, TrainConfig] = {
    "fine-tuned": CONFIG,
    "a quarter of the epochs": replace(CONFIG, epochs=4, score_every=4, ema_decays=()),
    "a tenth of the rate": replace(CONFIG, lr=CONFIG.lr / 10, ema_decays=()),
    "head alone": replace(CONFIG, frozen=("[0-9].*", "10.*"), ema_decays=()),
}
STRENGTHS: Mapping[str, Mapping[str, TrainConfig]] = {
    "pull to the start": {
        f"pull to the start, {x:g}": replace(CONFIG, pull_to_start=x, ema_decays=())
        for x in (0.003, 0.01, 0.03, 0.1, 0.3)
    },
    "distillation": {
        f"distillation, {x:g}": replace(CONFIG, distill_from_start=x, ema_decays=())
        for x in (0.05, 0.1, 0.2, 0.3, 0.5)
    },
}
"""Ways to hold a run near its start, weaker and stronger, as set up on seeds 300 and 301."""
LOSS_AND_CROP = {"loss": {"choice": ["task", "sigmoid"]}, "min_crop": {"uniform": [0.5, 1.0]}}
_Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sweep:
    """The demo of one seed, and what scores its models."""

    folder: Path
    evaluator: TaskEvaluator

    @property
    def base(self) -> Path:
        """What all runs start from."""
        return self.folder / "base.safetensors"

    @functools.cached_property
    def models(self) -> stockpot.Ingredients:
        """The runs."""
        files = sorted((self.folder / "runs").glob("run-*.safetensors"))
        return stockpot.Ingredients(files, base=self.base)

    def right(self, model: Any, split: str) -> _Values:
        """1 for each example that `model` gets right, else 0."""
        found = self.evaluator.predictions(model, split).per_example
        assert found is not None
        return found

    def scores(self, model: Any) -> dict[str, float]:
        """Accuracy in each of `COLUMNS`."""
        by = {split: float(self.right(model, split).mean()) for split in self.evaluator.task.splits}
        by[SHIFT_AVERAGE] = statistics.fmean(by[name] for name in SHIFTS if name != "fonts")
        return {name: by[name] for name in COLUMNS}

    def mean_of(self, indices: Sequence[int]) -> stockpot.Mixture:
        """The uniform soup of some runs."""
        weights = [float(i in indices) / len(indices) for i in range(len(self.models))]
        return stockpot.Mixture(self.models, stockpot.Coefficients.per_model(weights))


def lines(sweep: Sweep) -> list[dict[str, dict[str, float]]]:
    """Scores at every α between the base and each run: {α: {column: accuracy}}, one per run."""
    found = []
    for model in sweep.models:
        pair = stockpot.Ingredients([sweep.base, model])
        points = (
            stockpot.Mixture(pair, stockpot.Coefficients.per_model([1 - a, a])) for a in ALPHAS
        )
        found.append({str(a): sweep.scores(point) for a, point in zip(ALPHAS, points, strict=True)})
    return found


def pairs(sweep: Sweep) -> dict[str, list[dict[str, float]]]:
    """How differently two models err on test, and what averaging them gains over their mean.

    Of every two runs, and of the base with every run.
    """
    outputs = [sweep.evaluator.predictions(model, "test") for model in sweep.models]
    runs = [sweep.right(model, "test") for model in sweep.models]
    base = sweep.right(stockpot.open(sweep.base), "test")
    of_runs = []
    for i, j in itertools.combinations(range(len(runs)), 2):
        together = mean_logits(sweep.evaluator, [outputs[i], outputs[j]], "test").per_example
        assert together is not None
        alone = (runs[i].mean() + runs[j].mean()) / 2
        of_runs.append(
            {
                "differ": float((runs[i] != runs[j]).mean()),
                "ensemble": float(together.mean() - alone),
                "soup": float(sweep.right(sweep.mean_of([i, j]), "test").mean() - alone),
            }
        )
    return {"runs": of_runs, "base": [{"differ": float((base != run).mean())} for run in runs]}


def by_number(sweep: Sweep, *, seed: int) -> list[dict[str, Any]]:
    """Uniform soup, ensemble and mean of the first k runs, in one random order."""
    order = np.random.default_rng(seed).permutation(len(sweep.models)).tolist()
    splits = ["test", *(name for name in SHIFTS if name != "fonts")]
    found = []
    for k in (k for k in NUMBERS if k <= len(order)):
        members = [sweep.models[i] for i in order[:k]]
        rows: dict[str, dict[str, float]] = {"soup": {}, "ensemble": {}, "mean run": {}}
        for split in splits:
            each = [sweep.evaluator.predictions(model, split) for model in members]
            together = mean_logits(sweep.evaluator, each, split).per_example
            assert together is not None
            rows["ensemble"][split] = float(together.mean())
            rows["soup"][split] = float(sweep.right(sweep.mean_of(order[:k]), split).mean())
            rows["mean run"][split] = statistics.fmean(
                float(sweep.right(model, split).mean()) for model in members
            )
        found.append(
            {"k": k, **{name: {"test": by["test"],
                               SHIFT_AVERAGE: statistics.fmean(by[s] for s in splits[1:])}
                        for name, by in rows.items()}}
        )  # fmt: skip
    return found


def severities(images: _Values, labels: torch.Tensor, *, seed: int) -> dict[str, Split]:
    """The test digits, turned by a number of degrees to either side, and with noise."""
    rng = np.random.default_rng(seed)
    sides, noise = rng.choice([-1, 1], len(images)), rng.normal(size=images.shape)

    def turned(degrees: float) -> _Values:
        each = [
            ndimage.rotate(image, side * degrees, reshape=False, order=1)
            for image, side in zip(images, sides, strict=True)
        ]
        return np.stack(each)

    changed = {f"turned by {d}": turned(d) for d in DEGREES}
    changed |= {f"noise of {sd}": images + sd / 16 * noise for sd in NOISE[1:]}
    return {
        name: Split(
            TensorDataset(torch.tensor(data.clip(0, 1)[:, None], dtype=torch.float32), labels),
            role=Role.SHIFT,
        )
        for name, data in changed.items()
    }


def by_severity(sweep: Sweep, *, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """{model: {split: accuracy and ECE}} on digits that are changed more and more."""
    test = sweep.evaluator.task.splits["test"].dataset
    examples = [test[i] for i in range(len(test))]  # type: ignore[arg-type]
    images = np.stack([image[0].numpy().astype(np.float64) for image, _ in examples])
    labels = torch.tensor([int(label) for _, label in examples])
    task = with_splits(sweep.evaluator.task, severities(images, labels, seed=seed))
    best = stockpot.BestSingle().cook(sweep.models, evaluator=sweep.evaluator, report=False)
    greedy = stockpot.Greedy(explain=False).cook(
        sweep.models, evaluator=sweep.evaluator, report=False
    )
    models = {
        "base": stockpot.open(sweep.base),
        "best single": best.mixture,
        "greedy": greedy.mixture,
        "uniform": sweep.mean_of(range(len(sweep.models))),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    with TaskEvaluator(task, device="cpu") as judge:
        for split in task.splits:
            predicted = {name: judge.predictions(model, split) for name, model in models.items()}
            members = [judge.predictions(model, split) for model in sweep.models]
            predicted["ensemble"] = mean_logits(judge, members, split)
            for name, one in predicted.items():
                shares = special.softmax(one.outputs.astype(np.float64), axis=1)
                right = one.per_example
                assert right is not None
                found.setdefault(name, {})[split] = {
                    "accuracy": float(right.mean()),
                    "ece": expected_calibration_error(shares.max(1), right),
                }
    return found


def by_training(sweep: Sweep, place: Path, *, seed: int) -> dict[str, dict[str, float]]:
    """Scores of other ways to stay near the base, beside WiSE-FT of one run."""
    files = {}
    held = {name: config for by in STRENGTHS.values() for name, config in by.items()}
    for name, config in {**TRAINED, **held}.items():
        files[name] = place / f"{name.replace(',', '').replace(' ', '-')}.safetensors"
        if not files[name].exists():
            fine_tune(
                sweep.evaluator.task, sweep.base, config, out=files[name], seed=seed, device="cpu"
            )
    average = place / "averages" / f"{files['fine-tuned'].stem}-ema-0.9.safetensors"
    models: dict[str, Any] = {"base": sweep.base, **files, "EMA of decay 0.9": average}
    found = {name: sweep.scores(stockpot.open(path)) for name, path in models.items()}
    for kind, by in STRENGTHS.items():
        best = max(by, key=lambda name: found[name]["held-out"])
        found[f"{kind}, chosen"], files[f"{kind}, chosen"] = found[best], files[best]
    for name in ("fine-tuned", "head alone", *(f"{kind}, chosen" for kind in STRENGTHS)):
        pair = stockpot.Ingredients([sweep.base, files[name]])
        points = {
            a: sweep.scores(stockpot.Mixture(pair, stockpot.Coefficients.per_model([1 - a, a])))
            for a in ALPHAS
        }
        found[f"{name}, α = 0.5"] = points[0.5]
        chosen = max(reversed(ALPHAS), key=lambda a: points[a]["held-out"])
        found[f"{name}, α chosen"] = points[chosen]
    return found


def by_choice(
    sweep: Sweep, place: Path, *, seed: int, lab: Lab
) -> dict[str, dict[str, dict[str, float]]]:
    """{sweep: {model: scores}} of the demo's runs, and of runs whose loss and crops vary as well.

    Everything else is drawn alike: run i of both has the same rate, decay, length and seed.
    """
    law = {**lab.space().as_data(), **LOSS_AND_CROP}
    options = replace(lab.sweep(seed=seed), space=law)
    made = run_sweep(
        lab.task_maker(seed=seed), str(sweep.base), options, out=place / "loss-and-crop"
    )
    made.raise_failures()
    sweeps = {
        "as in the demo": sweep.models,
        "loss and crops too": stockpot.Ingredients(made.paths, base=sweep.base),
    }
    return {name: _averaged(sweep, models) for name, models in sweeps.items()}


def _averaged(sweep: Sweep, models: stockpot.Ingredients) -> dict[str, dict[str, float]]:
    each, evaluator = [sweep.scores(model) for model in models], sweep.evaluator
    recipes = {
        "best single": stockpot.BestSingle(),
        "uniform": stockpot.Uniform(),
        "greedy": stockpot.Greedy(explain=False),
    }
    return {
        "mean run": {c: statistics.fmean(scores[c] for scores in each) for c in COLUMNS},
        **{
            name: sweep.scores(recipe.cook(models, evaluator=evaluator, report=False).mixture)
            for name, recipe in recipes.items()
        },
    }


def study(seed: int, *, demos: Path, out: Path, lab: Lab) -> dict[str, Any]:
    """Everything of one seed, or what an earlier call found."""
    file = out / "parts" / f"seed-{seed}.json"
    if not file.exists():
        torch.set_num_threads(1)
        place = out / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        task = lab.task(seed=seed)
        with TaskEvaluator(task, cache=place / "journal", device="cpu") as evaluator:
            sweep = Sweep(demos / f"seed-{seed}", evaluator)
            parts: Mapping[str, Callable[[], Any]] = {
                "lines": lambda: lines(sweep),
                "pairs": lambda: pairs(sweep),
                "numbers": lambda: by_number(sweep, seed=seed),
                "severities": lambda: by_severity(sweep, seed=seed),
                "training": lambda: by_training(sweep, place, seed=seed),
                "choices": lambda: by_choice(sweep, place, seed=seed, lab=lab),
            }
            write_json(file, {"seed": seed, **{name: make() for name, make in parts.items()}})
    found: dict[str, Any] = json.loads(file.read_text())
    return found


# ── what the tables and claims are made of: one number for each seed ─────────────────────────────

Found = Sequence[Mapping[str, Any]]


def at_alpha(found: Found, column: str, alpha: str) -> list[float]:
    """Mean accuracy over runs at α, `"best"` that of each run's best α, `"chosen"` by held-out."""

    def one(line: Mapping[str, Mapping[str, float]]) -> float:
        if alpha == "best":
            return max(point[column] for point in line.values())
        if alpha == "chosen":
            return line[max(line, key=lambda a: (line[a]["held-out"], float(a)))][column]
        return line[alpha][column]

    return [statistics.fmean(one(line) for line in seed["lines"]) for seed in found]


def spread(found: Found, column: str, alpha: str) -> list[float]:
    """Standard deviation over the runs of a sweep at α."""
    return [statistics.stdev(line[alpha][column] for line in seed["lines"]) for seed in found]


def difference(found: Found, kind: str) -> list[float]:
    """Share of test digits on which just one of two models is right, mean over pairs."""
    return [statistics.fmean(pair["differ"] for pair in seed["pairs"][kind]) for seed in found]


def correlation(found: Found, gain: str) -> list[float]:
    """Pearson's r over the pairs of runs between how they differ and what their average gains."""
    return [
        float(
            np.corrcoef([[p["differ"], p[gain]] for p in seed["pairs"]["runs"]], rowvar=False)[0, 1]
        )
        for seed in found
    ]


def with_members(found: Found, k: int, model: str, column: str) -> list[float]:
    """Accuracy of a model of k runs."""
    return [next(row for row in seed["numbers"] if row["k"] == k)[model][column] for seed in found]


def under(found: Found, model: str, split: str, measure: str) -> list[float]:
    """Accuracy or ECE of a model on changed digits."""
    return [seed["severities"][model][split][measure] for seed in found]


def by_varied(found: Found, varied: str, model: str, other: str, column: str) -> list[float]:
    """`model` minus `other` of one of the two sweeps of a seed."""
    return [
        seed["choices"][varied][model][column] - seed["choices"][varied][other][column]
        for seed in found
    ]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def markdown(found: Found) -> str:
    """All tables."""
    parts = (_lines, _pairs, _numbers, _severities, _training, _choices)
    text = "\n\n".join("\n".join(part(found)) for part in parts)
    return f"Means over {len(found)} seeds, with 95 % t-intervals.\n\n{text}"


def _lines(found: Found) -> list[str]:
    names = {"0.0": "base", "0.5": "0.5", "1.0": "1, fine-tuned", "chosen": "chosen by held-out",
             "best": "best, looked up"}  # fmt: skip
    columns = COLUMNS[1:]
    shown = [column.replace("_", " ") for column in columns]
    rows = [
        [title, *(tables.percent(at_alpha(found, column, alpha)) for column in columns),
         *(tables.percent(spread(found, column, alpha)) if alpha in found[0]["lines"][0] else ""
           for column in columns[:2])]
        for alpha, title in names.items()
    ]  # fmt: skip
    gains = [
        [title, *(tables.points(at_alpha(found, column, alpha), at_alpha(found, column, "1.0"))
                  for column in columns)]
        for alpha, title in names.items() if alpha in ("0.5", "chosen", "best")
    ]  # fmt: skip
    return [
        "WiSE-FT of every run, mean over the runs of a sweep; the last columns are the standard "
        "deviation between them:", "",
        *tables.table(["α", *shown, "between runs, test", "between runs, shifts"], rows), "",
        "Points above the fine-tuned runs, paired by seed; (n): the interval holds 0:", "",
        *tables.table(["α", *shown], gains),
    ]  # fmt: skip


def _pairs(found: Found) -> list[str]:
    rows = [
        ["two runs", tables.percent(difference(found, "runs")), _r(correlation(found, "ensemble")),
         _r(correlation(found, "soup"))],
        ["base and a run", tables.percent(difference(found, "base")), "", ""],
    ]  # fmt: skip
    head = ["pair", "differ on test", "r with the ensemble's gain", "r with the soup's gain"]
    return [
        "Differ: just one of the two is right. Gain: over the mean of the two, on test:", "",
        *tables.table(head, rows),
    ]  # fmt: skip


def _r(values: Sequence[float]) -> str:
    cell = tables.over_seeds(values)
    return f"{cell.mean:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}]"


def _numbers(found: Found) -> list[str]:
    head, rows = ["runs"], []
    for column in ("test", SHIFT_AVERAGE):
        head += [
            f"{model}, {column.replace('_', ' ')}" for model in ("mean run", "soup", "ensemble")
        ]
    for k in (row["k"] for row in found[0]["numbers"]):
        cells = [
            tables.percent(with_members(found, k, model, column))
            for column in ("test", SHIFT_AVERAGE)
            for model in ("mean run", "soup", "ensemble")
        ]
        rows.append([str(k), *cells])
    return ["Members drawn at random, accuracy in percent:", "", *tables.table(head, rows)]


def _severities(found: Found) -> list[str]:
    models, splits = list(found[0]["severities"]), list(found[0]["severities"]["base"])
    lines = []
    for measure, title in (
        ("accuracy", "Accuracy in percent"),
        ("ece", "Expected calibration error in percent (15 bins of equal mass)"),
    ):
        rows = [
            [split, *(tables.percent(under(found, model, split, measure)) for model in models)]
            for split in splits
        ]
        lines += [
            f"{title}, on test digits that are turned (degrees) or noisy (of ink 0 to 16):", "",
            *tables.table(["change", *models], rows), "",
        ]  # fmt: skip
    return lines[:-1]


def _training(found: Found) -> list[str]:
    names = list(found[0]["training"])
    rows = [
        [
            name,
            *(
                tables.percent([seed["training"][name][column] for seed in found])
                for column in COLUMNS
            ),
        ]
        for name in names
    ]
    head = ["one run", *(column.replace("_", " ") for column in COLUMNS)]
    return ["Ways to stay near the base, accuracy in percent:", "", *tables.table(head, rows)]


def _choices(found: Found) -> list[str]:
    columns = COLUMNS[1:]
    shown = [column.replace("_", " ") for column in columns]
    accuracies = [
        [varied, model, *(tables.percent([seed["choices"][varied][model][column] for seed in found])
                          for column in columns)]
        for varied, by in found[0]["choices"].items() for model in by
    ]  # fmt: skip
    gains = [
        [varied, model, *(_gain(by_varied(found, varied, model, "best single", column))
                          for column in columns)]
        for varied in found[0]["choices"] for model in ("uniform", "greedy")
    ]  # fmt: skip
    return [
        "Twelve runs whose loss (softmax or sigmoid) and crops (at least ½ to all of the area) "
        "vary as well, accuracy in percent:", "",
        *tables.table(["varied", "model", *shown], accuracies), "",
        "Points above the best single run of the same sweep:", "",
        *tables.table(["varied", "model", *shown], gains),
    ]  # fmt: skip


def _gain(values: Sequence[float]) -> str:
    return tables.in_points(tables.over_seeds(values))


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demos", type=Path, required=True, help="that of experiments.handwriting")
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="of the demo's small case")
    given = parser.parse_args(arguments)
    sizes = lab if lab is not None else QUICK if given.quick else FULL
    work = functools.partial(study, demos=given.demos.resolve(), out=given.out.resolve(), lab=sizes)
    jobs = {f"seed {seed}": seed for seed in given.seeds}
    found = values_of(side_by_side(work, jobs, n_jobs=given.jobs))
    return write_results(given.out, "questions", found, markdown(found))


if __name__ == "__main__":
    from experiments import questions

    print(questions.main())
