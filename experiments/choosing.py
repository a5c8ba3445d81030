"""Choosing among real fine-tunes: what early rejection keeps and costs, and what is better for it.

    python -m experiments.choosing --data DATA --ingredients ../ingredients --out ../choosing \
        --only resnet --only sst2 --seeds 0 1 2 --orders 20

reads what `experiments.ingredients` made (give both the same `--seeds`, `--only` and `--quick`) and
writes `choosing.json` and `choosing.md`. For each sweep:

- best single, uniform, greedy, pruned, and the ensembles, on every split; every choice is made on
  held-out, test and shifts only report;
- greedy with early rejection beside greedy that scores everything, in the order of scores and in
  `--orders` random ones, each with a journal of its own that knows the single models and no soup:
  do they keep the same, and at what cost. The random orders are also a row of the first table.

Each piece is a file in `OUT/parts`, so a call that was killed goes on; `--jobs` processes work on
them side by side. Without an accelerator `--held-out` and `--calibration` make the races cheaper,
`--races` leaves out the table, and `--no-plain` the loop that scores everything.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import side_by_side, values_of, write_json, write_results
from experiments.rounding import whole_float32
from torch.utils.data import Subset

import stockpot
from experiments import ingredients, tables
from stockpot import Role
from stockpot.evaluate import (
    paired_difference,
    part_of,
    scores_to_json,
    split_fingerprint,
    split_to_choose_on,
    with_splits,
)
from stockpot.recipes import ensemble, greedy_ensemble
from stockpot.train import read_runs

EXPERIMENTS = ("resnet", "sst2")
BASELINE = "best single"
MIN_BLOCK = 64
"""Examples of the smallest block of a race: what a rejected candidate may cost on top."""
GOAL = 1.2
"""Of the E + 1 examples that no exact rule can do without, E the errors of the current soup."""
NOISE = 0.05


@dataclass(frozen=True)
class Piece:
    """Work of one process: the table of a sweep (`order` None), or the races of one order."""

    sweep: ingredients.Sweep
    order: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        which = "table" if self.order is None else f"order-{self.order}"
        policy = "" if self.sweep.batchnorm is None else f"-{self.sweep.batchnorm}"
        return f"sweep-{self.sweep.seed}-{self.sweep.experiment.name}{policy}-{which}"


@dataclass(frozen=True)
class Sizes:
    """Most examples of held-out, and of the set that BatchNorm is recalibrated on; None for all."""

    held_out: int | None = None
    calibration: int | None = None

    def cut(self, task: stockpot.Task) -> stockpot.Task:
        """`task` with the first examples of both sets; they are in random order."""
        name = split_to_choose_on(task)
        if self.held_out is not None:
            split = task.splits[name]
            n = min(self.held_out, len(split.dataset))  # type: ignore[arg-type]
            whole = split_fingerprint(split).value
            task = with_splits(
                task, {**task.splits, name: part_of(split, range(n), fingerprint=whole)}
            )
        if self.calibration is not None and task.calibration_set is not None:
            n = min(self.calibration, len(task.calibration_set))  # type: ignore[arg-type]
            view: Any = with_splits(task, task.splits)
            view.calibration_set = Subset(task.calibration_set, range(n))
            # Recalibration goes over the training set where there is one.
            if getattr(task, "train_set", None) is not None:
                view.train_set = Subset(task.train_set, range(n))
            task = view
        return task


def opened(
    sweep: ingredients.Sweep, sizes: Sizes
) -> tuple[stockpot.TaskEvaluator, stockpot.Ingredients]:
    """An evaluator that keeps its journal beside the sweep, and the runs of the sweep."""
    whole_float32()  # by which it is judged whether an output hangs in the balance
    task = sizes.cut(sweep.task())
    evaluator = stockpot.TaskEvaluator(
        task, cache=sweep.cache, device=sweep.device, batchnorm=sweep.batchnorm
    )
    files = [sweep.runs / record.path for record in read_runs(sweep.runs)]
    base = sweep.base if sweep.base.exists() else None
    return evaluator, stockpot.Ingredients(files, base=base)


# ── the table of one sweep ────────────────────────────────────────────────────────────────────────


def soups_of(sweep: ingredients.Sweep) -> dict[str, Any]:
    """Scores of every way to choose, with p-values against the best single run on what reports."""
    started = time.perf_counter()
    evaluator, models = opened(sweep, Sizes())
    recipes: dict[str, Any] = {
        BASELINE: stockpot.BestSingle(),
        "uniform": stockpot.Uniform(),
        "greedy": stockpot.Greedy(optimism="full", explain=False),
        "pruned": stockpot.Pruned(),
    }
    soups = {name: recipe.cook(models, evaluator=evaluator) for name, recipe in recipes.items()}
    singles = [evaluator.scores(model) for model in models]
    found = {
        name: {
            split: evaluator.predictions(soup.scored_as, split) for split in evaluator.task.splits
        }
        for name, soup in soups.items()
    }
    kept = {name: len(soup.selected) for name, soup in soups.items()}
    choose_on = split_to_choose_on(evaluator.task)
    for name, mean in (
        ("ensemble of all", ensemble(evaluator, list(models))),
        ("greedy ensemble", greedy_ensemble(evaluator, list(models), choose_on)),
    ):
        found[name], kept[name] = dict(mean.predictions), len(mean.members)
    rows = [
        {
            "model": name,
            "kept": kept[name],
            "scores": scores_to_json(evaluator.scores_of(predictions)),
            "p_values": _p_values(predictions, found[BASELINE]),
        }
        for name, predictions in found.items()
    ]
    return {
        "experiment": sweep.label,
        "sweep": sweep.seed,
        "metric": evaluator.task.metric.name,
        "n_runs": len(models),
        "splits": {
            name: {"role": Role(split.role).value, "n": evaluator.n_examples(name)}
            for name, split in evaluator.task.splits.items()
        },
        "mean_of_runs": {
            split: statistics.fmean(one[split].value for one in singles) for split in singles[0]
        },
        "rows": rows,
        "optimism": soups["greedy"].details.to_json()["optimism"],
        "pruned": {
            "examples": soups["pruned"].examples_evaluated,
            "plain": soups["pruned"].examples_plain,
        },
        "environment": {
            "torch": torch.__version__,
            "device": sweep.device,
            "machine": platform.machine(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seconds": time.perf_counter() - started,
    }


def _p_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        split: None
        if one[split].per_example is None
        else paired_difference(one[split].per_example, other[split].per_example).p_value
        for split in one
    }


# ── greedy with and without early rejection ───────────────────────────────────────────────────────


def races_of(
    sweep: ingredients.Sweep, order: str, *, sizes: Sizes = Sizes(), plain: bool = True
) -> dict[str, Any]:
    """Greedy twice in one order (`"score"`, or the seed of a random one), each on its own.

    Without `plain` the loop that scores everything is left out. With all examples the soup is also
    scored on what reports.
    """
    known, models = opened(sweep, sizes)
    split = split_to_choose_on(known.task)
    options: dict[str, Any] = (
        {"order": "score"} if order == "score" else {"order": "random", "seed": int(order)}
    )
    told = {
        early: _cook(known, models, split, stockpot.Greedy(early_rejection=early, **options))
        for early in ((True, False) if plain else (True,))
    }
    fast, slow = told[True], told.get(False)
    kept = [float(Path(model.path).name in fast["selected"]) for model in models]
    soup = stockpot.Mixture(models, stockpot.Coefficients.per_model(kept, normalise=True))
    return {
        "experiment": sweep.label,
        "sweep": sweep.seed,
        "order": order,
        "n": known.n_examples(split),
        "k": len(models),
        "same": slow and fast["selected"] == slow["selected"],
        "decided_alike": slow
        and [s["accepted"] for s in fast["steps"]] == [s["accepted"] for s in slow["steps"]],
        "early": fast,
        "plain": slow,
        "scores": scores_to_json(known.scores(soup)) if sizes == Sizes() else {},
    }


def _cook(
    known: stockpot.TaskEvaluator,
    models: stockpot.Ingredients,
    split: str,
    recipe: stockpot.Greedy,
) -> dict[str, Any]:
    """The decisions of a recipe that has only the outputs of the single models to begin with."""
    evaluator = stockpot.TaskEvaluator(
        known.task, cache=None, device=known.runner.device.type, batchnorm=known.batchnorm
    )
    for model in models:
        outputs = known.predictions(model, split).outputs
        evaluator.journal.append(evaluator.key(model, split), np.arange(len(outputs)), outputs)
    started = time.perf_counter()
    soup = recipe.cook(models, evaluator=evaluator, report=False)
    return {
        "selected": [Path(path).name for path in soup.selected],
        "steps": [step.to_json() for step in soup.steps],
        "examples": soup.examples_evaluated,
        "calibration": soup.examples_calibration,
        "forward_passes": evaluator.counters.examples,
        "seconds": time.perf_counter() - started,
    }


@dataclass(frozen=True)
class Costs:
    """What choosing cost over some orders; shares are of (k−1)·n, the cost of a plain loop.

    Attributes:
        same: orders in which both loops kept the same.
        compared: orders in which both were run.
        rejected: rejected candidates.
        mean_cost: examples that a rejected candidate took, on average.
        mean_least: E + 1 of the soup that it was tried against, on average.
        share: of all candidates together.
        floor: Σ_accepted n + Σ_rejected (E + 1), which no exact rule can pass.
        calibration: examples of BatchNorm passes for one order, on average, counted apart.
        held_out: n.
    """

    same: int
    compared: int
    rejected: int
    mean_cost: float
    mean_least: float
    share: float
    floor: float
    calibration: float
    held_out: int

    @property
    def goal(self) -> float:
        """The most that a rejected candidate may take on average."""
        return GOAL * self.mean_least + MIN_BLOCK


def costs(races: Sequence[Mapping[str, Any]]) -> Costs:
    """The costs of the races of one experiment, whose metric is accuracy."""
    cost: list[int] = []
    least: list[int] = []
    examples = floor = plain = 0
    for race in races:
        n, steps = race["n"], race["early"]["steps"]
        errors = round((1 - steps[0]["score"]) * n)
        for step in steps[1:]:
            if step["accepted"]:
                errors = round((1 - step["score"]) * n)
                floor += n
            else:
                cost.append(step["examples"])
                least.append(errors + 1)
                floor += errors + 1
        examples += race["early"]["examples"]
        plain += (race["k"] - 1) * n
    return Costs(
        same=sum(bool(race["same"] and race["decided_alike"]) for race in races),
        compared=sum(race["plain"] is not None for race in races),
        rejected=len(cost),
        mean_cost=statistics.fmean(cost or [0]),
        mean_least=statistics.fmean(least or [0]),
        share=examples / plain,
        floor=floor / plain,
        calibration=statistics.fmean(race["early"]["calibration"] for race in races),
        held_out=races[0]["n"],
    )


# ── pieces, and tables of them ────────────────────────────────────────────────────────────────────


def made(piece: Piece, *, out: Path, sizes: Sizes = Sizes(), plain: bool = True) -> dict[str, Any]:
    """What a piece finds, or what an earlier call found."""
    file = out / "parts" / f"{piece.name}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = (
            soups_of(piece.sweep)
            if piece.order is None
            else races_of(piece.sweep, piece.order, sizes=sizes, plain=plain)
        )
        write_json(file, found)
    again: dict[str, Any] = json.loads(file.read_text())
    return again


def run(
    sweeps: Sequence[ingredients.Sweep],
    *,
    n_orders: int,
    out: Path,
    n_jobs: int = 1,
    with_tables: bool = True,
    sizes: Sizes = Sizes(),
    plain: bool = True,
) -> None:
    """All pieces of `sweeps`, as far as they are missing.

    Raises:
        WorkerError: names the pieces that failed.
    """
    orders = ["score", *map(str, range(n_orders))]
    # The tables come first: they score the single models for the others.
    first = [Piece(sweep) for sweep in sweeps if with_tables]
    for pieces in (first, [Piece(sweep, order) for order in orders for sweep in sweeps]):
        values_of(
            side_by_side(
                functools.partial(made, out=out, sizes=sizes, plain=plain),
                {piece.name: piece for piece in pieces},
                n_jobs=n_jobs,
            )
        )


def collected(out: Path) -> dict[str, Any]:
    """`{"tables": […], "races": […]}`: all pieces in a folder, of this call and earlier ones."""
    pieces = [json.loads(file.read_text()) for file in sorted((out / "parts").glob("*.json"))]
    return {
        "tables": [piece for piece in pieces if "rows" in piece],
        "races": [piece for piece in pieces if "order" in piece],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """All tables, experiment by experiment."""
    lines: list[str] = []
    every = [*found["tables"], *found["races"]]
    for name in dict.fromkeys(one["experiment"] for one in every):
        sweeps = [one for one in found["tables"] if one["experiment"] == name]
        races = [one for one in found["races"] if one["experiment"] == name]
        lines += [f"### {name}", ""]
        if sweeps:
            lines += [
                f"{len(sweeps)} sweeps of {sweeps[0]['n_runs']} runs, {sweeps[0]['metric']}.",
                "",
                *_choice_lines(sweeps, races),
                *_optimism_lines(sweeps, races),
            ]
        lines += _cost_lines(races)
    return "\n".join(lines)


def _choice_lines(
    sweeps: Sequence[Mapping[str, Any]], races: Sequence[Mapping[str, Any]]
) -> list[str]:
    splits = _columns(sweeps[0])
    values = {
        row["model"]: {s: [_row(one, row["model"])["scores"][s]["value"] for one in sweeps]
                       for s in splits}
        for row in sweeps[0]["rows"]
    }  # fmt: skip
    kept = {
        row["model"]: [float(_row(one, row["model"])["kept"]) for one in sweeps]
        for row in sweeps[0]["rows"]
    }
    # One number for each sweep: the mean over its random orders.
    shuffled = [_random(races, one["sweep"]) for one in sweeps]
    if all(shuffled):
        values["greedy, random order"] = {
            s: [statistics.fmean(r["scores"][s]["value"] for r in some) for some in shuffled]
            for s in splits
        }
        kept["greedy, random order"] = [
            statistics.fmean(len(r["early"]["selected"]) for r in some) for some in shuffled
        ]
    values["mean of the runs"] = {s: [one["mean_of_runs"][s] for one in sweeps] for s in splits}
    scores, gains = [], []
    for model, by in values.items():
        mean_kept = f"{statistics.fmean(kept[model]):.1f}" if model in kept else ""
        cells = [tables.in_percent(tables.over_seeds(by[s])) for s in splits]
        scores.append([model, mean_kept, *cells])
        if model == BASELINE:
            continue
        pairs = [[a - b for a, b in zip(by[s], values[BASELINE][s], strict=True)] for s in splits]
        noise = [_beyond_noise(sweeps, model, s) for s in splits]
        points = [tables.in_points(tables.over_seeds(pair)) for pair in pairs]
        gains.append([model, *(f"{p}{n}" for p, n in zip(points, noise, strict=True))])
    shown = [split.replace("_", " ") for split in splits]
    counts = {name: split["n"] for name, split in sweeps[0]["splits"].items()}
    sizes = ", ".join(f"{s} {counts[s]:,}" for s in splits if s in counts)
    return [
        f"In percent, mean over sweeps ± half of its 95 % t-interval ({sizes} examples):",
        "",
        *tables.table(["", "models in it", *shown], scores),
        "",
        f"Points above the {BASELINE} of the same sweep, with 95 % t-intervals over sweeps; (n): "
        "the interval holds 0. In braces: in how many of the sweeps the difference on that split's "
        f"examples is beyond noise (p ≤ {NOISE}, exact McNemar):",
        "",
        *tables.table(["", *shown], gains),
        "",
    ]


def _columns(one: Mapping[str, Any]) -> list[str]:
    """Splits as they are read: what chose, what reports, shifts, and their average."""
    roles = [role.value for role in Role]
    splits = one["splits"]
    ordered = sorted(splits, key=lambda name: roles.index(splits[name]["role"]))
    return [*ordered, *(s for s in one["rows"][0]["scores"] if s not in splits)]


def _beyond_noise(sweeps: Sequence[Mapping[str, Any]], model: str, split: str) -> str:
    if all(row["model"] != model for row in sweeps[0]["rows"]):
        return ""
    p_values = [_row(one, model)["p_values"].get(split) for one in sweeps]
    known = [p for p in p_values if p is not None]
    return f" {{{sum(p <= NOISE for p in known)} of {len(known)}}}" if known else ""


def _row(one: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(row for row in one["rows"] if row["model"] == model)
    return found


def _random(races: Sequence[Mapping[str, Any]], sweep: int) -> list[Mapping[str, Any]]:
    return [
        race
        for race in races
        if race["sweep"] == sweep and race["order"] != "score" and race["scores"]
    ]


def _optimism_lines(
    sweeps: Sequence[Mapping[str, Any]], races: Sequence[Mapping[str, Any]]
) -> list[str]:
    rows = []
    for one in sweeps:
        found, some = one["optimism"], _random(races, one["sweep"])
        flattery = "" if found is None else (
            f"{100 * found['value']:+.2f} [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
        )  # fmt: skip
        spread = "" if len(some) < 2 else " / ".join(
            f"{100 * statistics.stdev(r['scores'][s]['value'] for r in some):.2f}"
            for s in ("held-out", "test")
        )  # fmt: skip
        kept = " ".join(str(_row(one, m)["kept"]) for m in ("greedy", "pruned", "greedy ensemble"))
        rows.append([f"sweep {one['sweep']}", kept, flattery, spread])
    return [
        "Selection optimism is by how much choosing flatters the held-out score (bootstrap, 95 % "
        "of resamples, all candidates scored); sd is over the random orders, in points:",
        "",
        *tables.table(
            ["", "kept by greedy, pruned, greedy ensemble", "optimism of greedy, points",
             "sd on held-out / test"],
            rows,
        ),
        "",
    ]  # fmt: skip


def _cost_lines(races: Sequence[Mapping[str, Any]]) -> list[str]:
    groups = {
        "score": [race for race in races if race["order"] == "score"],
        "random": [race for race in races if race["order"] != "score"],
    }
    rows = []
    for name, some in groups.items():
        if not some:
            continue
        c = costs(some)
        same = f"{c.same} of {c.compared}" if c.compared else "–"
        rows.append(
            [
                name, same, str(c.rejected), f"{c.mean_cost:.0f}",
                f"{c.mean_least:.0f}", f"{c.goal:.0f}", f"{100 * c.share:.1f} %",
                f"{100 * c.floor:.1f} %", f"{c.calibration:,.0f}",
            ]
        )  # fmt: skip
    if not rows:
        return []
    return [
        f"Greedy with early rejection beside a loop that scores everything, {races[0]['n']:,} "
        "held-out examples. Cost is in examples; E are the errors of the current soup:",
        "",
        *tables.table(
            ["order", "the same soup", "rejected", "cost of one", "E + 1",
             f"{GOAL} (E + 1) + {MIN_BLOCK}", "share of the plain loop", "floor of any exact rule",
             "BatchNorm passes, apart"],
            rows,
        ),
        "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--orders", type=int, default=20, help="random orders of each sweep")
    parser.add_argument("--races", action="store_true", help="races alone, no table")
    parser.add_argument("--no-plain", action="store_true", help="races without the plain loop")
    parser.add_argument("--held-out", type=int, help="race on no more examples")
    parser.add_argument("--calibration", type=int, help="recalibrate BatchNorm on no more")
    ingredients.add_arguments(parser)
    ingredients.add_scoring_arguments(parser)
    options = parser.parse_args()
    there = ingredients.asked_for(options, options.only or EXPERIMENTS)
    run(
        list(there.values()),
        n_orders=options.orders,
        out=options.out,
        n_jobs=options.jobs,
        with_tables=not options.races,
        sizes=Sizes(options.held_out, options.calibration),
        plain=not options.no_plain,
    )
    found = collected(options.out)
    print(write_results(options.out, "choosing", found, markdown(found)))


if __name__ == "__main__":
    main()
